"""One thing done by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


def run_at_once(run: Callable[[Input], Output], inputs: Sequence[Input], times: int) -> list[list[Output]]:
    """What ``run`` gave for each input, ``times`` times, in a thread for each."""
    outputs: list[list[Output]] = [[] for _ in inputs]

    def work(index: int) -> None:
        outputs[index] = [run(inputs[index]) for _ in range(times)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs
