"""A thread for work on long texts (L): tokenising a book and naming all its entities takes seconds, which neither the thread
that receives requests nor the one that answers them has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class LongTexts:
    """Does what it is given, one after the other. Any thread may call."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fastserve-long-texts")

    def do(self, work: Callable[[], None]) -> None:
        """Returns at once. ``work`` raises nothing: nobody would hear of it."""
        self._executor.submit(work)

    def wait(self) -> None:
        """Until everything is done that was given so far."""
        self._executor.submit(int).result()

    def stop(self) -> None:
        """Finish what is there and end the thread. Nothing may be given after this."""
        self._executor.shutdown()
