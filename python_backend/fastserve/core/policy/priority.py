"""Classes first: a request with a lower ``priority`` goes before every one with a higher; inside a class another policy rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from fastserve.core.policy.protocol import Policy
from fastserve.core.sequence import Sequence


class PriorityClasses:
    """Strict classes: as long as more urgent requests fill the machine, others wait. Nobody starves inside a class."""

    def __init__(self, make_inner: Callable[[], Policy]) -> None:
        """``make_inner``: makes the policy of one class."""
        self._make_inner = make_inner
        self._classes: dict[int, Policy] = {}

    def add(self, sequence: Sequence, now: float) -> None:
        priority = sequence.request.priority
        if priority not in self._classes:
            self._classes[priority] = self._make_inner()
            self._classes = dict(sorted(self._classes.items()))
        self._inner(sequence).add(sequence, now)

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        self._inner(sequence).charge(sequence, num_tokens, started, ended)

    def preempted(self, sequence: Sequence) -> None:
        self._inner(sequence).preempted(sequence)

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        self._inner(sequence).discard(sequence, completed=completed)  # the class stays, with what it has learned

    def ordered(self, now: float) -> Iterator[Sequence]:
        for inner in self._classes.values():
            yield from inner.ordered(now)

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        members: dict[int, set[Sequence]] = {}
        for sequence in sequences:
            members.setdefault(sequence.request.priority, set()).add(sequence)
        for priority in sorted(members, reverse=reverse):
            yield from self._classes[priority].among(members[priority], now, reverse=reverse)

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> None:
        """The order is all there is."""

    def _inner(self, sequence: Sequence) -> Policy:
        return self._classes[sequence.request.priority]
