"""How fast this machine multiplies and reads, measured in about a second, and what that allows a model."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_MULTIPLIED = (256, 1024, 1024)
"""Rows, inner size and columns of the product that is timed: about what a layer does with a full batch."""
_READ_BYTES = 256 << 20
_FP32_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class MachineRates:
    """``flops``: fp32 operations a second in matrix products. ``read_bytes``: bytes a second read from memory."""

    flops: float
    read_bytes: float


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """Tokens a second that multiplying and reading weights allow; attention, sampling and the server come on top.

    ``alone``: one answer. ``batch``: ``batch_size`` answers together. ``prompt``: reading prompts, or texts of an encoder.
    """

    alone: float
    batch: float
    batch_size: int
    prompt: float


def measure_machine(budget_s: float = 0.5, clock: Callable[[], float] = time.perf_counter) -> MachineRates:
    """The best of what was seen within ``budget_s`` seconds for each rate, on all cores this process may use."""
    rows, inner, columns = _MULTIPLIED
    left, right = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    multiply_s = _best_seconds(lambda: left @ right, budget_s, clock)
    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), len(os.sched_getaffinity(0)))
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        read_s = _best_seconds(lambda: list(pool.map(_read, parts)), budget_s, clock)
    return MachineRates(2 * rows * inner * columns / multiply_s, _READ_BYTES / read_s)


def predict(rates: MachineRates, matmul_elements: int, batch_size: int) -> Prediction:
    """A step reads every weight once and multiplies it with each token: the slower of the two bounds it (the roofline of
    Williams, Waterman and Patterson, 2009)."""
    read_s = matmul_elements * _FP32_BYTES / rates.read_bytes
    multiply_s = 2 * matmul_elements / rates.flops
    return Prediction(
        alone=1 / max(read_s, multiply_s),
        batch=batch_size / max(read_s, batch_size * multiply_s),
        batch_size=batch_size,
        prompt=1 / multiply_s,
    )


def _read(part: npt.NDArray[np.float32]) -> float:
    """Every element once, with less arithmetic than a core can do while it waits for memory."""
    return float(np.dot(part, part))


def _best_seconds(run: Callable[[], object], budget_s: float, clock: Callable[[], float]) -> float:
    """Of one run: the shortest, after one that warms up, until the budget is spent."""
    run()
    end = clock() + budget_s
    best = float("inf")
    while True:
        started = clock()
        run()
        now = clock()
        best = min(best, now - started)
        if now >= end:
            return max(best, 1e-9)
