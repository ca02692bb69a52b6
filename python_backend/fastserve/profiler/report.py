"""The figures of a measurement, as they are shown and written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fastserve.engine.step_times import PHASES
from fastserve.profiler.measurement import BETWEEN, Step, mean_seconds
from fastserve.profiler.node_times import KINDS, RUNTIME, RunTimes, sum_runs

RUN = "run"


def report(steps: Sequence[Step], noted: tuple[Sequence[Step], Sequence[RunTimes]] | None) -> dict[str, Any]:
    """``noted``: a second measurement of the same load and the run of each of its iterations, None without a profile."""
    seconds = sum(sum(step.seconds.values()) for step in steps)
    output_tokens = sum(step.answered for step in steps)
    groups = {"all": list(steps), "only decodes": [step for step in steps if step.only_decodes]}
    return {
        "output_tokens": output_tokens,
        "seconds": seconds,
        "output_tokens_per_s": output_tokens / seconds,
        "steps": {name: _group(name, group, noted) for name, group in groups.items() if group},
        "operators": {} if noted is None else _operators(noted[1]),
    }


def _group(name: str, steps: Sequence[Step], noted: tuple[Sequence[Step], Sequence[RunTimes]] | None) -> dict[str, Any]:
    means = mean_seconds(steps)
    python = sum(means[phase] for phase in PHASES if phase != RUN)
    found: dict[str, Any] = {
        "number": len(steps),
        "tokens": statistics.fmean(step.computed for step in steps),
        "answers": statistics.fmean(step.answered for step in steps),
        "median_ms": 1e3 * statistics.median(sum(step.seconds.values()) for step in steps),
        "mean_ms": 1e3 * sum(means.values()),
        "python_ms": 1e3 * python,
        "python_share": python / (sum(means.values()) - means[BETWEEN]),
        "phases_ms": {phase: 1e3 * seconds for phase, seconds in means.items()},
    }
    if noted is not None:
        runs = [run for step, run in zip(*noted, strict=True) if name == "all" or step.only_decodes]
        total = sum_runs(runs)
        run_ms = 1e3 * means[RUN] / total.total
        found["run_ms"] = {kind: run_ms * total.kinds[kind] for kind in (*KINDS, RUNTIME)}
    return found


def _operators(runs: Sequence[RunTimes]) -> dict[str, float]:
    """The share of each operator in the time of all runs, the largest first."""
    total = sum_runs(runs)
    return {operator: seconds / total.total for operator, seconds in total.operators.items()}
