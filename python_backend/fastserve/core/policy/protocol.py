"""What a scheduling policy is: an order over unfinished sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fastserve.core.sequence import Sequence


class Policy(Protocol):
    """Orders sequences by urgency. Pure bookkeeping: no clock of its own, no blocks, no I/O.

    The scheduler stops reading ``ordered`` as soon as its budgets are full, so the order should be produced lazily.
    """

    def add(self, sequence: Sequence, now: float) -> None:
        """A sequence arrived."""

    def discard(self, sequence: Sequence) -> None:
        """A sequence ended (in any way)."""

    def ordered(self, now: float) -> Iterator[Sequence]:
        """Every unfinished sequence, the most urgent first."""

    def least_urgent(self, now: float) -> Iterator[Sequence]:
        """Every unfinished sequence, the least urgent first: the exact reverse of ``ordered``."""
