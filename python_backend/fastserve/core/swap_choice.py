"""Which sequences to move between the pool and the tiers below it, ahead of need. Pure functions.

Wu et al., "Fast Distributed Inference Serving for Large Language Models", 2023, section 4.2: the state of jobs that will not run
for long goes out before the pool is full, that of jobs that run soon comes back before they do, so that no iteration waits
for either. What decides is the estimated next scheduled time (ENST): the largest goes first, the smallest comes first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable

from fastserve.core.policy import Policy
from fastserve.core.sequence import Sequence

AHEAD_STEPS = 4
"""Growth and arrivals of so many iterations find idle blocks."""
STAY = 40
"""Who came in does not make way, for somebody who is still out, before it has stayed so many times as long as its copy took: the
way in and out then takes at most a twentieth of the time. Without that a pool that is smaller than what runs together does
nothing but copy."""
LONGEST_STAY_S = 5.0
"""No longer, however slow the copies are: whoever is more urgent waits meanwhile."""
RESERVE_SHARE = 4
"""At most one part in so many of the pool is kept idle."""
KEEP = 0.95
"""Weight that the past keeps in an average with each new value."""
DEFAULT_BLOCKS_PER_STEP = 64
"""Until a copy was seen."""


@dataclasses.dataclass(frozen=True, slots=True)
class Movable:
    """A sequence that may move. ``num_blocks``: that it takes in the pool. ``next_s``: its ENST, seconds from now."""

    sequence: Sequence
    num_blocks: int
    next_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """Blocks of the pool. ``free``: neither held nor promised. ``leaving``: free when the transfers in flight have ended.
    ``reserve``: to be kept free for arrivals and growth."""

    free: int
    leaving: int
    reserve: int


class SwapPace:
    """What decisions are sized by, as averages of the recent past: arrivals, iterations, copies."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Of the pool."""
        self.step_s = 0.0
        """What an iteration takes."""
        self.steps = 0
        """Iterations so far."""
        self._block_s = 0.0
        self._most = num_blocks // RESERVE_SHARE
        self._block_size = block_size
        self._arrived = 0
        self._arrivals = 0.0  # blocks an iteration

    def arrived(self, num_tokens: int) -> None:
        """A request with a prompt of so many tokens came."""
        self._arrived += -(-num_tokens // self._block_size)

    def stepped(self, seconds: float) -> None:
        """An iteration is over."""
        self._arrivals = _average(self._arrivals, self._arrived)
        self._arrived = 0
        self.steps += 1
        self.step_s = _average(self.step_s, seconds) if self.step_s else seconds

    def copied(self, num_blocks: int, seconds: float) -> None:
        """A transfer is over."""
        per_block = seconds / num_blocks
        self._block_s = _average(self._block_s, per_block) if self._block_s else per_block

    def reserve(self, num_running: int) -> int:
        """Blocks to keep idle: for what arrives, and for what the ``num_running`` sequences of an iteration grow by, in
        :data:`AHEAD_STEPS` iterations."""
        growth = num_running / self._block_size
        return min(self._most, math.ceil(AHEAD_STEPS * (self._arrivals + growth)))

    @property
    def blocks_per_step(self) -> int:
        """Blocks that can be copied while an iteration runs."""
        return int(self.step_s / self._block_s) if self._block_s else DEFAULT_BLOCKS_PER_STEP

    def stay_steps(self, num_blocks: int) -> int:
        """Iterations that a sequence of so many blocks stays, see :data:`STAY`."""
        return math.ceil(min(STAY * num_blocks * self._block_s, LONGEST_STAY_S) / self.step_s) if self.step_s else 0

    def horizon_s(self, num_blocks: int) -> float:
        """When it is needed, who begins to come in now: a sequence of so many blocks arrives during the next iteration, or as
        soon as its copy takes."""
        return self.step_s + max(self.step_s, num_blocks * self._block_s)


def _average(average: float, value: float) -> float:
    return KEEP * average + (1.0 - KEEP) * value


def next_schedule_times(
    policy: Policy, sequences: Collection[Sequence], batch_size: int, step_s: float, now: float
) -> dict[Sequence, float]:
    """ENST of each, seconds from ``now``. ``batch_size``: sequences that run together; ``step_s``: what an iteration takes.

    A policy without an estimate of its own knows the order only: then it is the place among ``sequences``, as if each
    batch of them took one iteration. That has the right order, and says of the next batch that it is next.
    """
    estimates = {sequence: policy.next_schedule_s(sequence, batch_size, now) for sequence in sequences}
    known = {sequence: estimate for sequence, estimate in estimates.items() if estimate is not None}
    if len(known) == len(estimates):
        return known
    return {sequence: place // batch_size * step_s for place, sequence in enumerate(policy.among(estimates, now))}


def choose_swaps(
    resident: Iterable[Movable], stored: Iterable[Movable], room: Room, pace: SwapPace
) -> tuple[list[Sequence], list[Sequence]]:
    """Sequences to move out and in during the next iteration; one of the lists is empty. ``resident``: hold blocks and do not run
    now; ``stored``: are in a tier.

    1. While fewer blocks are idle than the reserve, the largest ENST goes out; who is needed soon stays.
    2. Else the smallest ENST comes in while the reserve stays whole.
    3. If it is needed soon and finds no room, the largest ENST goes out to make some.

    No more is moved than can be copied while an iteration runs, but at least one sequence.
    """
    coming = sorted(stored, key=lambda one: one.next_s)
    wanted, horizon_s = room.reserve, pace.horizon_s(coming[0].num_blocks if coming else 0)
    going = sorted((one for one in resident if one.next_s > horizon_s), key=lambda one: one.next_s, reverse=True)
    idle, moved = room.free + room.leaving, 0
    ins: list[Sequence] = []
    if idle >= wanted:
        for one in coming:
            if room.free - moved - one.num_blocks < room.reserve or (ins and moved + one.num_blocks > pace.blocks_per_step):
                break
            moved += one.num_blocks
            ins.append(one.sequence)
        if ins or not coming or coming[0].next_s > horizon_s:
            return [], ins
        wanted += coming[0].num_blocks
    outs: list[Sequence] = []
    for one in going:
        if idle + moved >= wanted or (outs and moved + one.num_blocks > pace.blocks_per_step):
            break
        moved += one.num_blocks
        outs.append(one.sequence)
    return outs, []
