"""A simulation in numbers: latencies of all requests, and by class of prompt and output length, so that who pays is visible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastserve.simulator.simulation import BLOCK_SIZE, Run, Served

MEASURES: dict[str, Callable[[Served], float]] = {
    "ttft_s": lambda served: served.ttft_s,
    "normalized_latency_s": lambda served: served.normalized_latency_s,
    "jct_s": lambda served: served.jct_s,
}
"""Time to the first token; job completion time over output tokens; job completion time."""
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
CLASS_BOUNDS = (64, 256, 1024)
"""The longest prompt or output, in tokens, of each class but the last."""


def row(policy: str, load: float, run: Run, *, swap: str = "recompute") -> dict[str, Any]:
    """One line of the report. ``swap``: what became of sequences that the pool had no room for."""
    return {
        "policy": policy,
        "swap": swap,
        "load": load,
        "requests": len(run.served),
        **_measures(run.served),
        "output_tokens_per_s": sum(served.job.output_tokens for served in run.served) / run.seconds,
        "preemptions": run.preemptions,
        "swapped_bytes": run.swapped_bytes,
        "swap_wait_s": run.swap_wait_s,
        "peak_kv_tokens": run.peak_blocks * BLOCK_SIZE,
        "by_prompt_tokens": _by_class(run.served, lambda served: served.job.prompt_tokens),
        "by_output_tokens": _by_class(run.served, lambda served: served.job.output_tokens),
    }


def class_names() -> list[str]:
    """Of the classes of lengths, the shortest first."""
    lows = (1, *(bound + 1 for bound in CLASS_BOUNDS))
    return [f"{low}-{high}" for low, high in zip(lows, CLASS_BOUNDS, strict=False)] + [f"{lows[-1]}+"]


def _by_class(served: Sequence[Served], length: Callable[[Served], int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    bounds = (0, *CLASS_BOUNDS, math.inf)
    for name, low, high in zip(class_names(), bounds, bounds[1:], strict=False):
        members = [one for one in served if low < length(one) <= high]
        if members:
            found[name] = {"requests": len(members), **_measures(members)}
    return found


def _measures(served: Sequence[Served]) -> dict[str, dict[str, float]]:
    return {name: _statistics([measure(one) for one in served]) for name, measure in MEASURES.items()}


def _statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles (the smallest value that at least the share of all does not exceed)."""
    ordered = sorted(values)
    quantiles = {name: ordered[max(math.ceil(share * len(ordered)) - 1, 0)] for name, share in QUANTILES.items()}
    return {"mean": math.fsum(ordered) / len(ordered), **quantiles}
