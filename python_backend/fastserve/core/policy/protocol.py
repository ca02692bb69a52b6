"""What a scheduling policy is: an order over unfinished sequences."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from fastserve.core.sequence import Sequence


class Policy(Protocol):
    """Orders sequences by urgency. Pure bookkeeping: no clock of its own, no blocks, no I/O.

    The order depends on nothing but what was told and ``now``: asking for it changes nothing. It is total, and every
    sequence gets its turn in the end, also one that was preempted.
    """

    def add(self, sequence: Sequence, now: float) -> None:
        """A sequence arrived."""

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        """A sequence that goes on has computed ``num_tokens`` tokens in a step between these times."""

    def preempted(self, sequence: Sequence) -> None:
        """A sequence lost its blocks: what it had computed is to be computed again."""

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        """A sequence ended. ``completed``: its output is as long as it was going to be; not so when it was cut short."""

    def ordered(self, now: float) -> Iterator[Sequence]:
        """Every unfinished sequence, the most urgent first. Lazy: the planner stops reading when its budgets are full."""

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        """Some that hold blocks or are swapped out, in the order of ``ordered``; ``reverse``: the least urgent first. Lazy.
        ``sequences``: a set or a dict."""

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> float | None:
        """Estimated next scheduled time (ENST) of a sequence, seconds from ``now``, when ``batch_size`` run together. None: the
        policy knows the order and no times."""
