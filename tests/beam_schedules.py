"""Beam searches in random schedules: what may be asked for, and what is seen of them in a step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastserve.core.scheduler import Scheduler
from fastserve.core.sequence import SequenceStatus

BEAM_EVENT_KINDS = ("beam searches", "resting beams", "preempted beams")


def random_beams(rng: random.Random) -> dict[str, Any]:
    """Parameters of a request."""
    num_beams = rng.choice((2, 3, 5))
    shape = {"length_penalty": rng.choice((-1.0, 0.0, 1.0, 2.0)), "early_stopping": rng.choice((False, True, "never"))}
    return shape | {"num_beams": num_beams, "n": rng.randint(1, num_beams), "temperature": 0.0, "constraint": None}


@contextmanager
def count_beams(scheduler: Scheduler, seen: Counter[str]) -> Iterator[None]:
    """Around a step."""
    held = [sequence for sequence in scheduler.sequences if sequence.search and sequence.block_table]
    yield
    seen["preempted beams"] += sum(beam.status is SequenceStatus.WAITING for beam in held)
    seen["resting beams"] += sum(beam.rests and bool(beam.block_table) for beam in held)
