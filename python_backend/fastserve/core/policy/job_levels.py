"""The queues of ``skip_join_mlfq.py``: jobs by level, and those below the top by how long they have waited."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from fastserve.core.sequence import Sequence

Mark = tuple[float, int]
"""(seconds, number), and no two jobs have a mark with the same number."""


@dataclasses.dataclass(slots=True, eq=False)
class Job:
    """Where a sequence stands."""

    sequence: Sequence
    levels: JobLevels
    """That it is in."""
    level: int
    place: Mark
    """When it came into the level: who came first goes first."""
    served: Mark
    """End of its last step, or its arrival."""
    used_s: float = 0.0
    """Of this level's quantum."""


class JobLevels:
    """Levels 0 (the most urgent) to ``num_levels - 1``; who waits below the top for ``starvation_s`` is promoted to it.

    A promotion is worked out when it is asked for and written down when the job is served: so a burst of them costs nothing.
    """

    def __init__(self, num_levels: int, starvation_s: float) -> None:
        self._starvation_s = starvation_s
        self._levels: list[list[tuple[Mark, Job]]] = [[] for _ in range(num_levels)]  # each in order of place
        self._below: dict[Job, None] = {}  # jobs that can be promoted, the longest waiting first
        self._late: list[tuple[Mark, Job]] = []  # likewise, of those that came over from other levels, by when they were served

    def size(self, level: int) -> int:
        """Jobs in a level, promoted ones among them."""
        return len(self._levels[level])

    def enter(self, job: Job, *, late: bool = False) -> None:
        """``late``: others have been served since the job was."""
        bisect.insort(self._levels[job.level], (job.place, job))
        if job.level > 0 and late:
            bisect.insort(self._late, (job.served, job))
        elif job.level > 0:
            self._below[job] = None

    def leave(self, job: Job) -> None:
        level = self._levels[job.level]
        del level[bisect.bisect_left(level, (job.place,))]
        if job.level > 0:
            self._end_wait(job)

    def served(self, job: Job, mark: Mark) -> None:
        """The job stays where it is, and waits since now: shorter than all others."""
        if job.level > 0:
            self._end_wait(job)
            self._below[job] = None
        job.served = mark

    def _end_wait(self, job: Job) -> None:
        if job in self._below:
            del self._below[job]
        else:
            del self._late[bisect.bisect_left(self._late, (job.served,))]

    def standing(self, job: Job, now: float) -> tuple[int, Mark]:
        """(level, place in it) at ``now``."""
        return (0, self._promoted_place(job)) if self._starves(job, now) else (job.level, job.place)

    def _starves(self, job: Job, now: float) -> bool:
        return job.level > 0 and job.served[0] + self._starvation_s <= now

    def _promoted_place(self, job: Job) -> Mark:
        """At the top, as if it had come when it had waited too long."""
        return job.served[0] + self._starvation_s, job.served[1]

    def top(self, now: float) -> tuple[Iterable[tuple[Mark, Job]], ...]:
        """Jobs in level 0 and the promoted ones, in parts that are in order of place."""
        late = (job for _, job in self._late)
        return self._levels[0], self._promoted(self._below, now), self._promoted(late, now)

    def top_reversed(self, now: float) -> tuple[Iterable[tuple[Mark, Job]], ...]:
        """The parts of ``top``, each from its end."""
        late = (job for _, job in reversed(self._late))
        return reversed(self._levels[0]), self._promoted_reversed(reversed(self._below), now), self._promoted_reversed(late, now)

    def _promoted_reversed(self, waiting: Iterable[Job], now: float) -> Iterator[tuple[Mark, Job]]:
        for job in itertools.dropwhile(lambda job: not self._starves(job, now), waiting):
            yield self._promoted_place(job), job

    def _promoted(self, waiting: Iterable[Job], now: float) -> Iterator[tuple[Mark, Job]]:
        starvation_s = self._starvation_s
        for job in waiting:  # all below the top
            since, mark = job.served
            if since + starvation_s > now:
                return
            yield (since + starvation_s, mark), job

    def below_top(self, level: int, now: float) -> Iterator[tuple[Mark, Job]]:
        """Jobs of a level but 0 that are not promoted, in order of place."""
        starvation_s = self._starvation_s
        return (entry for entry in self._levels[level] if entry[1].served[0] + starvation_s > now)

    def served_of_late(self, now: float) -> Iterator[Job]:
        """Jobs below the top that are not promoted, in any order."""
        all_waiting: tuple[Iterable[Job], ...] = (reversed(self._below), (job for _, job in reversed(self._late)))
        for waiting in all_waiting:
            for job in waiting:
                if self._starves(job, now):
                    break
                yield job
