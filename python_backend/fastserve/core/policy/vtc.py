"""Fair shares between tenants by virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", 2024,
Algorithm 2).

Each tenant has a counter of the service it got, in weighted tokens. Whoever has the lowest is served next, so tenants that have
work all get the same, whatever they send; nobody is idle in favour of a tenant that has nothing to do. A tenant that comes
back cannot spend what it did not use: its counter is lifted to the lowest of those that have work.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
from collections.abc import Collection, Iterator

from fastserve.core.sequence import Sequence

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
"""What a token counts (section 5.1 of the paper)."""


@dataclasses.dataclass(slots=True)
class _Tenant:
    """A tenant with unfinished sequences. ``waiting``: those that have not begun, in order of arrival."""

    name: str
    counter: float
    waiting: dict[Sequence, None] = dataclasses.field(default_factory=dict)
    unfinished: int = 0


class VirtualTokenCounter:
    """Sequences that have begun go on, in the order they began; then the tenants' turns, first come first served in each.

    As in the paper no tenant takes a place that another holds: places become free as answers end.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._turns: list[tuple[float, str]] = []  # counter and name of each, sorted
        self._retired: dict[str, float] = {}  # counters of tenants without unfinished sequences, the latest last
        self._forget_at = 64
        self._begun: dict[Sequence, int] = {}
        self._beginnings = 0

    def counter(self, tenant: str) -> float:
        """Weighted tokens that a tenant was served, and those it was lifted by."""
        present = self._tenants.get(tenant)
        return present.counter if present is not None else self._retired.get(tenant, 0.0)

    def add(self, sequence: Sequence, now: float) -> None:
        name = sequence.request.tenant
        tenant = self._tenants.get(name)
        if tenant is None:
            lowest = self._turns[0][0] if self._turns else next(reversed(self._retired.values()), 0.0)
            tenant = self._tenants[name] = _Tenant(name, max(self._retired.pop(name, 0.0), lowest))
            bisect.insort(self._turns, (tenant.counter, name))
        tenant.waiting[sequence] = None
        tenant.unfinished += 1

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        tenant = self._tenants[sequence.request.tenant]
        if sequence not in self._begun:
            del tenant.waiting[sequence]
            self._beginnings += 1
            self._begun[sequence] = self._beginnings
        self._end_turn(tenant)
        decoded = num_tokens == 1 and len(sequence.output_token_ids) > 1
        tenant.counter += OUTPUT_WEIGHT if decoded else PROMPT_WEIGHT * num_tokens
        bisect.insort(self._turns, (tenant.counter, tenant.name))

    def preempted(self, sequence: Sequence) -> None:
        """It goes on where it was in the order."""

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        tenant = self._tenants[sequence.request.tenant]
        if self._begun.pop(sequence, None) is None:
            del tenant.waiting[sequence]
        tenant.unfinished -= 1
        if tenant.unfinished == 0:
            del self._tenants[tenant.name]
            self._end_turn(tenant)
            self._retire(tenant)

    def ordered(self, now: float) -> Iterator[Sequence]:
        yield from self._begun
        first_turns = iter(self._turns)
        upcoming = next(first_turns, None)
        again: list[tuple[float, str, Iterator[Sequence]]] = []  # tenants whose turn has come before
        while upcoming or again:
            if upcoming and (not again or upcoming < again[0][:2]):
                (counter, name), upcoming = upcoming, next(first_turns, None)
                waiting = iter(self._tenants[name].waiting)
            else:
                counter, name, waiting = heapq.heappop(again)
            sequence = next(waiting, None)
            if sequence is not None:
                yield sequence
                heapq.heappush(again, (counter + PROMPT_WEIGHT * sequence.num_uncomputed, name, waiting))

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        begun = [sequence for sequence in sequences if sequence in self._begun]
        in_order = sorted(begun, key=self._begun.__getitem__)
        if len(begun) < len(sequences):  # who holds blocks has begun, but for the sequences of a step that failed
            others = set(sequences).difference(begun)
            in_order += [sequence for sequence in self.ordered(now) if sequence in others]
        return reversed(in_order) if reverse else iter(in_order)

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> None:
        """The order is all there is."""

    def _end_turn(self, tenant: _Tenant) -> None:
        del self._turns[bisect.bisect_left(self._turns, (tenant.counter, tenant.name))]

    def _retire(self, tenant: _Tenant) -> None:
        """Remember a tenant's counter as long as it can matter: one at or below all others would be lifted anyway."""
        self._retired[tenant.name] = tenant.counter
        if len(self._retired) > self._forget_at:
            lowest = self._turns[0][0] if self._turns else tenant.counter
            self._retired = {name: kept for name, kept in self._retired.items() if kept > lowest or name == tenant.name}
            self._forget_at = 2 * len(self._retired) + 64
