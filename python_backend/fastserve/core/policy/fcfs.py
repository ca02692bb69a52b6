"""First come, first served."""

from __future__ import annotations

from collections.abc import Iterator

from fastserve.core.sequence import Sequence


class FirstComeFirstServed:
    """Order of arrival. A preempted sequence keeps its place."""

    def __init__(self) -> None:
        self._sequences: dict[Sequence, None] = {}  # insertion order is arrival order

    def add(self, sequence: Sequence, now: float) -> None:
        self._sequences[sequence] = None

    def discard(self, sequence: Sequence) -> None:
        del self._sequences[sequence]

    def ordered(self, now: float) -> Iterator[Sequence]:
        return iter(self._sequences)

    def least_urgent(self, now: float) -> Iterator[Sequence]:
        return reversed(self._sequences)
