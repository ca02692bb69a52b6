"""First come, first served."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fastserve.core.sequence import Sequence


class FirstComeFirstServed:
    """Order of arrival. A preempted sequence keeps its place."""

    def __init__(self) -> None:
        self._places: dict[Sequence, int] = {}  # insertion order is arrival order
        self._arrivals = 0

    def add(self, sequence: Sequence, now: float) -> None:
        self._arrivals += 1
        self._places[sequence] = self._arrivals

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        """What was served does not count."""

    def preempted(self, sequence: Sequence) -> None:
        """Its place is its arrival's."""

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        del self._places[sequence]

    def ordered(self, now: float) -> Iterator[Sequence]:
        return iter(self._places)

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        return iter(sorted(sequences, key=self._places.__getitem__, reverse=reverse))

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> None:
        """The order is all there is."""
