"""What the scripts of all engines have in common. Each runs in the environment of its own engine: standard library only.

A script converts the checkpoint into what its engine reads, or serves a workload with the result and writes down when the tokens
of each request came:

    python openvino_peer.py convert CHECKPOINT MODEL --precision int8
    python openvino_peer.py measure MODEL WORKLOAD RECORD --precision int8 --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import workload
from workload import Item

WARM_UP_REQUESTS, WARM_UP_TOKENS = 2, 8
MAX_MODEL_LEN = 1024
SLEEP_S = 0.001
"""Between looks for the next arrival while nothing runs."""


class Record:
    """When the tokens of each request came, seconds from the beginning."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items
        self._start = time.perf_counter()
        self._first: list[float | None] = [None] * len(items)
        self._last = [0.0] * len(items)
        self._tokens = [0] * len(items)

    @property
    def now(self) -> float:
        return time.perf_counter() - self._start

    def add(self, index: int, tokens: int) -> None:
        """More ``tokens`` of a request have come."""
        if tokens:
            self._last[index] = self.now
            if self._first[index] is None:
                self._first[index] = self._last[index]
            self._tokens[index] += tokens

    def as_json(self) -> dict[str, Any]:
        """Raises ValueError unless every request has got exactly its tokens."""
        if wrong := [index for index, item in enumerate(self._items) if self._tokens[index] != item.output_tokens]:
            got = {index: (self._tokens[index], self._items[index].output_tokens) for index in wrong[:5]}
            raise ValueError(f"{len(wrong)} requests got another number of tokens than asked for (got, asked): {got}")
        rows = zip(self._items, self._first, self._last, strict=True)
        return {
            "requests": [
                {"at": item.at, "first": first, "last": last, "tokens": item.output_tokens} for item, first, last in rows
            ]
        }


class StepEngine(Protocol):
    """An engine that is driven iteration by iteration."""

    def add(self, index: int, item: Item) -> None: ...

    def step(self) -> Iterable[tuple[int, int]]:
        """One iteration: pairs of request and number of new tokens."""

    @property
    def has_work(self) -> bool: ...


def drive(engine: StepEngine, items: list[Item]) -> Record:
    """Hand in every request at its time and step until all have ended."""
    record, waiting = Record(items), deque(enumerate(items))
    while waiting or engine.has_work:
        while waiting and waiting[0][1].at <= record.now:
            engine.add(*waiting.popleft())
        if engine.has_work:
            for index, tokens in engine.step():
                record.add(index, tokens)
        elif waiting:
            time.sleep(SLEEP_S)
    return record


def warm_up_items(items: list[Item]) -> list[Item]:
    """Prompts that are no beginnings of those to come: an engine with a prefix cache must not know these already."""
    return [Item(0.0, item.prompt[::-1], WARM_UP_TOKENS) for item in items[:WARM_UP_REQUESTS]]


def peak_bytes() -> int:
    """The largest memory this process, or any of its children that have ended, ever held."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


Measure = Callable[[argparse.Namespace, list[Item]], tuple[Record, dict[str, Any]]]
"""From the arguments (model, precision, threads) and the workload to the record and what else is worth knowing (versions)."""


def main(convert: Callable[[Path, Path, str], None], measure: Measure, precisions: tuple[str, ...]) -> None:
    """The command line of every script. ``convert``: from a checkpoint to a folder that is not there yet, at a precision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("convert", "measure"))
    parser.add_argument("model", type=Path)
    parser.add_argument("other", type=Path, help="of convert: the folder to write; of measure: the workload")
    parser.add_argument("record", type=Path, nargs="?", help="of measure: the file to write")
    parser.add_argument("--precision", choices=precisions, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.action == "convert":
        convert(arguments.model, arguments.other, arguments.precision)
        return
    record, details = measure(arguments, workload.load(arguments.other))
    found = {**record.as_json(), "peak_bytes": peak_bytes(), **details}
    arguments.record.write_text(json.dumps(found) + "\n", encoding="utf-8")
