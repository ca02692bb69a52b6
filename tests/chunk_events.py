"""What random schedules see of chunks: what they find in the prefix cache, and how long they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastserve.core.plan import StepPlan
from fastserve.core.reservation import Reservation

if TYPE_CHECKING:
    from tests.random_schedules import Schedule

CHUNK_KINDS = ("found whole prompts", "found again after preemption", "iterations bounded by time")
PAIR_SECONDS = (0.0, 0.0, 1e-4, 0.01)
"""What a schedule's cost model begins with: contexts for nothing, dear ones, and such that no chunk but a block's pays."""


@contextmanager
def found_blocks(schedule: Schedule) -> Iterator[None]:
    scheduler = schedule.engine.scheduler
    reserve = scheduler.reserve

    def count(plan: StepPlan) -> Reservation:
        for chunk in plan.chunks:
            if chunk.cached_blocks:
                whole = chunk.start < len(chunk.cached_blocks) * scheduler.pool.block_size
                schedule.seen["found whole prompts"] += whole
                schedule.seen["found again after preemption"] += chunk.sequence.num_preemptions > 0
        return reserve(plan)

    scheduler.reserve = count  # type: ignore[method-assign]
    yield
    del scheduler.reserve


@contextmanager
def bounded_chunks(schedule: Schedule) -> Iterator[None]:
    """Counts iterations with fewer tokens than there would be if contexts cost nothing."""
    scheduler = schedule.engine.scheduler
    plan = scheduler.plan

    def compare(now: float) -> StepPlan:
        planned, limits = plan(now), scheduler.limits
        scheduler.limits = dataclasses.replace(limits, pair_tokens=0.0)
        schedule.seen["iterations bounded by time"] += planned.num_tokens < plan(now).num_tokens
        scheduler.limits = limits
        return planned

    if scheduler.limits.pair_tokens:
        scheduler.plan = compare  # type: ignore[method-assign]
    yield
    scheduler.__dict__.pop("plan", None)
