"""Many requests at the same time, their outcomes in the order they were asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from fastserve.errors import FastServeError, ToolError

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


def in_order(
    ask: Callable[[Asked], Answered], requests: Sequence[Asked], concurrency: int
) -> Generator[Answered | FastServeError, None, None]:
    """Each request's outcome, in order; ``ask`` runs on ``concurrency`` threads. They are daemons: Ctrl-C need not wait.

    Close it before what ``ask`` uses: what the threads meet afterwards is nobody's business.
    """
    closed = threading.Event()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    outcomes: list[queue.SimpleQueue[Answered | FastServeError]] = [queue.SimpleQueue() for _ in requests]
    for index in range(len(requests)):
        waiting.put(index)

    def work() -> None:
        while not closed.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes[index].put(ask(requests[index]))
            except FastServeError as error:
                outcomes[index].put(error)
            except BaseException as error:
                outcomes[index].put(ToolError(f"unexpected {type(error).__name__}: {error}"))
                if not closed.is_set():
                    raise

    for _ in range(min(concurrency, len(requests))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for outcome in outcomes:
            yield outcome.get()
    finally:
        closed.set()
