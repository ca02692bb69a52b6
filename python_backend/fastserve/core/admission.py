"""How many requests may come in, and how long each may stay: what every scheduler asks in the same way."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

from fastserve.errors import QueueFull


def check_queue(num_unfinished: int, max_queue_size: int) -> None:
    """Raises QueueFull, with both numbers, when no further request is accepted."""
    if num_unfinished >= max_queue_size:
        raise QueueFull(f"the queue is full: {num_unfinished} requests, max_queue_size is {max_queue_size}; try again later")


@dataclasses.dataclass(frozen=True, slots=True)
class QueueLimits:
    """Requests that are accepted but not finished: of all, and of each tenant. ``per_tenant``: 0 is as many as of all."""

    total: int
    per_tenant: int = 0


class Queue:
    """Counts unfinished requests by tenant; requests that name none are one tenant's."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._unfinished: Counter[str] = Counter()

    def check(self, tenant: str) -> None:
        """Raises QueueFull, naming the limit and what it counts, when no further request of the tenant is accepted."""
        check_queue(self._unfinished.total(), self._limits.total)
        count, limit = self._unfinished[tenant], self._limits.per_tenant
        if limit and count >= limit:
            raise QueueFull(
                f"the queue of tenant {tenant!r} is full: {count} requests, max_queue_size_per_tenant is {limit}; try again later"
            )

    def enter(self, tenant: str) -> None:
        self._unfinished[tenant] += 1

    def leave(self, tenant: str) -> None:
        self._unfinished[tenant] -= 1
        if not self._unfinished[tenant]:
            del self._unfinished[tenant]


class Deadlines:
    """When the time of which request is up. Logarithmic in the number of requests."""

    def __init__(self, unfinished: Mapping[int, object]) -> None:
        """``unfinished``: the scheduler's own table of requests by id; read, never changed."""
        self._unfinished = unfinished
        self._heap: list[tuple[float, int]] = []  # of requests that have ended, too, until they are due

    def __len__(self) -> int:
        """Deadlines kept, also of requests that have ended."""
        return len(self._heap)

    def add(self, deadline: float | None, request_id: int) -> None:
        """``deadline``: seconds on the engine's clock; None: no hurry."""
        if deadline is None:
            return
        heapq.heappush(self._heap, (deadline, request_id))
        if len(self._heap) > 2 * len(self._unfinished) + 64:  # mostly of requests that have ended
            self._heap = [entry for entry in self._heap if entry[1] in self._unfinished]
            heapq.heapify(self._heap)

    def pop_due(self, now: float) -> Iterator[int]:
        """Ids of unfinished requests whose deadline has passed, the earliest first; each is named once."""
        while self._heap and self._heap[0][0] <= now:
            _, request_id = heapq.heappop(self._heap)
            if request_id in self._unfinished:
                yield request_id
