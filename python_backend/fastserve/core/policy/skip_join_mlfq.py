"""FastServe's skip-join multi-level feedback queue (Wu et al., "Fast Distributed Inference Serving for Large Language
Models", 2023, section 4, Algorithm 1; ENST: section 5).

Nobody knows how long an answer will be, but the time to its first token follows from the prompt. So a request skips the levels
whose quantum that time would overrun, and from there sinks a level each time it has used up a quantum: short answers leave
from above, long ones make room. Who waits too long rises to the top.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
from collections.abc import Iterable, Iterator

from fastserve.core.cost_model import CostModel
from fastserve.core.sequence import Sequence

STARVATION_S = 0.3
"""The paper's alpha, for its GPUs."""


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    """Where a sequence stands. Both marks are (time, number), and no two of them have the same number."""

    sequence: Sequence
    level: int
    place: tuple[float, int]
    """When it came into the level: who came first goes first."""
    served: tuple[float, int]
    """End of its last step, or its arrival."""
    used_s: float = 0.0
    """Of this level's quantum."""


class SkipJoinMLFQ:
    """Levels 0 (the most urgent) to ``num_levels - 1``; quantum of level i: 2^i times the shortest step.

    A step is charged with what it would have taken alone: with prefill in chunks, a neighbour's long prompt in the same step
    must not cost a short answer its level. (The paper's steps hold either prompts or decodes.)
    """

    def __init__(self, cost_model: CostModel, *, starvation_s: float = STARVATION_S, num_levels: int = 16) -> None:
        """``starvation_s``: the paper's alpha. Quanta follow ``cost_model`` as it is fitted.

        When more jobs wait than the KV pool holds, each promotion pushes another job's blocks out: with an alpha that is not
        far above the time in which each of them could be swapped in once, the queue does little else (PERFORMANCE.md)."""
        self._cost_model = cost_model
        self._starvation_s = starvation_s
        self._levels: list[list[tuple[tuple[float, int], _Job]]] = [[] for _ in range(num_levels)]
        self._jobs: dict[Sequence, _Job] = {}
        self._below: dict[_Job, None] = {}  # jobs that can be promoted, the longest waiting first
        self._marks = 0

    def quantum_s(self, level: int) -> float:
        """The service a job may use in a level before it is demoted."""
        return self._cost_model.min_step_seconds * (1 << level)

    def level(self, sequence: Sequence, now: float) -> int:
        """A sequence's level, 0 when it starves."""
        return self._standing(self._jobs[sequence], now)[0]

    def add(self, sequence: Sequence, now: float) -> None:
        """Join the highest level whose quantum covers the time to the first token."""
        first = self._cost_model.first_token_seconds(sequence.num_uncomputed)
        level = 0
        while level < len(self._levels) - 1 and self.quantum_s(level) < first:
            level += 1
        mark = self._mark(now)
        job = self._jobs[sequence] = _Job(sequence, level, place=mark, served=mark)
        self._enter(job)

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        """Promote the job if it was starving when the step began; demote it if its quantum is used up and it has drawn a token:
        the paper's iterations end with one, and who is promoted gets at least that far."""
        job = self._jobs[sequence]
        level, place = self._standing(job, started)
        used = job.used_s if level == job.level else 0.0
        used += self._cost_model.step_seconds(num_tokens)
        mark = self._mark(ended)
        if used >= self.quantum_s(level) and sequence.num_uncomputed == 1 and level < len(self._levels) - 1:
            level, place, used = level + 1, mark, 0.0
        job.served, job.used_s = mark, used
        if place != job.place:
            self._leave(job)
            job.level, job.place = level, place
            self._enter(job)
        elif level > 0:
            del self._below[job]
            self._below[job] = None  # it waits since now, shorter than all others

    def preempted(self, sequence: Sequence) -> None:
        """It keeps its level: to lose one's blocks is no service."""

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        self._leave(self._jobs.pop(sequence))

    def ordered(self, now: float) -> Iterator[Sequence]:
        top = iter(self._levels[0])
        for _, job in heapq.merge(top, self._starving(now)):
            yield job.sequence
        for level in self._levels[1:]:
            for _, job in level:
                if not self._starves(job, now):
                    yield job.sequence

    def least_urgent(self, sequences: Iterable[Sequence], now: float) -> Iterator[Sequence]:
        return iter(sorted(sequences, key=lambda sequence: self._standing(self._jobs[sequence], now), reverse=True))

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> float:
        """Estimated next scheduled time (ENST), in seconds from ``now``: when it is promoted, or when each job above has
        used up its quanta down to this job's level, ``batch_size`` jobs at a time; whichever comes first."""
        job = self._jobs[sequence]
        level = self.level(sequence, now)
        until_promoted = max(0.0, job.served[0] + self._starvation_s - now) if level else 0.0
        work, quanta = 0.0, 0.0
        for above in range(level - 1, -1, -1):
            quanta += self.quantum_s(above)
            work += len(self._levels[above]) * quanta
        return min(until_promoted, work / batch_size)

    def _starves(self, job: _Job, now: float) -> bool:
        return job.level > 0 and job.served[0] + self._starvation_s <= now

    def _starving(self, now: float) -> Iterator[tuple[tuple[float, int], _Job]]:
        """Jobs that have waited so long, at the places at the top that they got when it was too long."""
        for job in self._below:
            if not self._starves(job, now):
                return
            yield self._standing(job, now)[1], job

    def _standing(self, job: _Job, now: float) -> tuple[int, tuple[float, int]]:
        """(level, place in it) at ``now``. A promotion is written down when the job is served, not when it is due: so a burst
        of them costs nothing."""
        if self._starves(job, now):
            return 0, (job.served[0] + self._starvation_s, job.served[1])
        return job.level, job.place

    def _mark(self, now: float) -> tuple[float, int]:
        self._marks += 1
        return now, self._marks

    def _enter(self, job: _Job) -> None:
        bisect.insort(self._levels[job.level], (job.place, job))
        if job.level > 0:
            self._below[job] = None

    def _leave(self, job: _Job) -> None:
        level = self._levels[job.level]
        del level[bisect.bisect_left(level, (job.place,))]
        self._below.pop(job, None)
