"""Classes first: a request with a lower ``priority`` goes before every one with a higher; inside a class another policy rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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

    def least_urgent(self, sequences: Iterable[Sequence], now: float) -> Iterator[Sequence]:
        members: dict[int, list[Sequence]] = {}
        for sequence in sequences:
            members.setdefault(sequence.request.priority, []).append(sequence)
        for priority in sorted(members, reverse=True):
            yield from self._classes[priority].least_urgent(members[priority], now)

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> None:
        """The order is all there is."""

    def _inner(self, sequence: Sequence) -> Policy:
        return self._classes[sequence.request.priority]
