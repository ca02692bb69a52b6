"""FastServe's skip-join multi-level feedback queue (Wu et al., "Fast Distributed Inference Serving for Large Language
Models", 2023, section 4, Algorithm 1; ENST: section 5).

Nobody knows how long an answer will be, but the time to its first token follows from the prompt. So a request skips the levels
whose quantum that time would overrun, and from there sinks a level each time it has used up a quantum: short answers leave
from above, long ones make room. Who waits too long rises to the top.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from operator import attrgetter

from fastserve.core.cost_model import CostModel
from fastserve.core.policy.job_levels import Job, JobLevels, Mark
from fastserve.core.sequence import Sequence
from fastserve.core.step_work import chunk_work

STARVATION_S = 0.3
"""The paper's alpha, for its GPUs."""


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
        self._num_levels = num_levels
        self._jobs: dict[Sequence, Job] = {}
        self._waiting = JobLevels(num_levels, starvation_s)
        """Jobs that have not run, or have lost their blocks since."""
        self._resident = JobLevels(num_levels, starvation_s)
        """All others: a long queue is not in the way of who asks for those that hold blocks."""
        self._marks = 0

    def quantum_s(self, level: int) -> float:
        """The service a job may use in a level before it is demoted."""
        return self._cost_model.min_step_seconds * (1 << level)

    def level(self, sequence: Sequence, now: float) -> int:
        """A sequence's level, 0 when it starves."""
        job = self._jobs[sequence]
        return job.levels.standing(job, now)[0]

    def add(self, sequence: Sequence, now: float) -> None:
        """Join the highest level whose quantum covers the time to the first token."""
        first = self._cost_model.first_token_seconds(sequence.num_uncomputed)
        level = 0
        while level < self._num_levels - 1 and self.quantum_s(level) < first:
            level += 1
        mark = self._mark(now)
        levels = self._resident if sequence.block_table else self._waiting
        self._jobs[sequence] = job = Job(sequence, levels, level, place=mark, served=mark)
        levels.enter(job)

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        """Promote the job if it was starving when the step began; demote it if its quantum is used up and it has drawn a token:
        the paper's iterations end with one, and who is promoted gets at least that far."""
        job = self._jobs[sequence]
        level, place = job.levels.standing(job, started)
        used = job.used_s if level == job.level else 0.0
        draws = sequence.num_uncomputed <= 1  # it has reached its end
        work = chunk_work(sequence.num_computed - num_tokens, num_tokens, draws, self._cost_model.windows)
        used += self._cost_model.step_seconds(work)
        mark = self._mark(ended)
        if used >= self.quantum_s(level) and sequence.num_uncomputed == 1 and level < self._num_levels - 1:
            level, place, used = level + 1, mark, 0.0
        job.used_s = used
        if place == job.place and job.levels is self._resident:
            job.levels.served(job, mark)
            return
        job.levels.leave(job)
        job.levels, job.level, job.place, job.served = self._resident, level, place, mark
        self._resident.enter(job)

    def preempted(self, sequence: Sequence) -> None:
        """It keeps its level: to lose one's blocks is no service."""
        if sequence.search is None:  # other beams may give a beam theirs at any time
            job = self._jobs[sequence]
            job.levels.leave(job)
            job.levels = self._waiting
            self._waiting.enter(job, late=True)

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        job = self._jobs.pop(sequence)
        job.levels.leave(job)

    def ordered(self, now: float) -> Iterator[Sequence]:
        return self._urgent_first((self._waiting, self._resident), now)

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        residents = self._least_urgent_residents(now) if reverse else self._urgent_first((self._resident,), now)
        return (sequence for sequence in residents if sequence in sequences)

    def _urgent_first(self, both: tuple[JobLevels, ...], now: float) -> Iterator[Sequence]:
        for _, job in heapq.merge(*(part for levels in both for part in levels.top(now))):
            yield job.sequence
        for level in range(1, self._num_levels):
            for _, job in heapq.merge(*(levels.below_top(level, now) for levels in both if levels.size(level))):
                yield job.sequence

    def _least_urgent_residents(self, now: float) -> Iterator[Sequence]:
        """The reverse of ``_urgent_first`` of the residents. Below the top are few that have not been promoted."""
        below: list[list[Job]] = [[] for _ in range(self._num_levels)]
        for job in self._resident.served_of_late(now):
            below[job.level].append(job)
        for jobs in reversed(below):
            for job in sorted(jobs, key=attrgetter("place"), reverse=True):
                yield job.sequence
        for _, job in heapq.merge(*self._resident.top_reversed(now), reverse=True):
            yield job.sequence

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> float:
        """Estimated next scheduled time (ENST), in seconds from ``now``: when it is promoted, or when each job above has
        used up its quanta down to this job's level, ``batch_size`` jobs at a time; whichever comes first."""
        job = self._jobs[sequence]
        level = self.level(sequence, now)
        until_promoted = max(0.0, job.served[0] + self._starvation_s - now) if level else 0.0
        work, quanta = 0.0, 0.0
        for above in range(level - 1, -1, -1):
            quanta += self.quantum_s(above)
            work += (self._waiting.size(above) + self._resident.size(above)) * quanta
        return min(until_promoted, work / batch_size)

    def _mark(self, now: float) -> Mark:
        self._marks += 1
        return now, self._marks
