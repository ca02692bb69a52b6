"""What random schedules do to sequences below the KV pool, and watch of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastserve.core.swapper import Tier
from tests.late_copier import LateCopier

if TYPE_CHECKING:
    from tests.random_schedules import Schedule

SWAP_KINDS = ("swap outs", "swap ins")
"""By the fields of ``SwapCounts``. Those of the file, failures and aborts are too rare for a few schedules of each policy."""


def random_tiers(rng: random.Random) -> dict[str, Any]:
    """Settings of ``make_engine``: no tiers, small ones, large ones."""
    return {
        "num_slots": {Tier.HOST: rng.choice((0, 0, 20, 200)), Tier.FILE: rng.choice((20, 200))},
        "proactive": rng.random() < 0.7,
        "chance": random.Random(rng.getrandbits(32)),
    }


def check_tiers(schedule: Schedule) -> None:
    """In the end nothing is left in a tier. Counts what moved."""
    swapper = schedule.engine.scheduler.swapper
    assert [slots.num_used for slots in swapper.slots.values()] == [0, 0]
    schedule.seen["swap waits"] = schedule.engine.stats().swap_waits
    schedule.seen.update({f"swap {name}": count for name, count in dataclasses.asdict(swapper.counts).items()})


def abort_a_swapped_request(schedule: Schedule) -> None:
    swapper = schedule.engine.scheduler.swapper
    if sequences := [*swapper.stored, *swapper.moving]:
        chosen = schedule.rng.choice(sequences)
        schedule.seen.update({"aborted below the pool": 1, "aborted on the way": chosen in swapper.moving})
        schedule.note(schedule.engine.abort(chosen.request.request_id))


def fail_the_next_transfer(schedule: Schedule) -> None:
    copier = schedule.engine._transfers._copier
    assert isinstance(copier, LateCopier)
    copier.failures = 1


@contextmanager
def one_way(schedule: Schedule) -> Iterator[None]:
    """No iteration moves sequences in and out of the pool."""
    counts = schedule.engine.scheduler.swapper.counts
    outs, ins = counts.outs, counts.ins
    yield
    assert counts.outs == outs or counts.ins == ins
