"""The table of a comparison of policies: measured, and as the simulator has it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

_MEASURES = {
    "mean JCT": ("jct_s", "mean"),
    "P95 JCT": ("jct_s", "p95"),
    "mean s/token": ("normalized_latency_s", "mean"),
    "P95 s/token": ("normalized_latency_s", "p95"),
}
Found = Mapping[str, Any]


def summarize_runs(found: Found, predicted: Sequence[Found], console: Console) -> None:
    """Medians over the rounds, in seconds; ratios to fcfs are medians of the rounds' own."""
    base, token = (cost * 1e3 for cost in found["costs_s"])
    console.print(f"a step: {base:.2f} ms and {token:.3f} ms a token ({found['factor']:.2f} times what was measured at load)")
    other = sum(run["answers_of_other_length"] for run in found["runs"])
    console.print(
        f"{len(found['runs'])} runs of {len(found['endings'])} requests; {other} answers were of another length than expected"
    )
    lines = ["| load | policy | measure | s | / fcfs | simulated s | simulated / fcfs | off by |"]
    lines.append("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for load in sorted({run["load"] for run in found["runs"]}):
        runs = [run for run in found["runs"] if run["load"] == load]
        guesses = {guess["policy"]: guess for guess in predicted if guess["load"] == load}
        for policy in guesses:
            lines += [_line(load, policy, name, runs, guesses) for name in _MEASURES]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _line(load: float, policy: str, name: str, runs: Sequence[Found], guesses: Mapping[str, Found]) -> str:
    measure, statistic = _MEASURES[name]
    by_round: dict[int, dict[str, float]] = {}
    for run in runs:
        by_round.setdefault(run["round"], {})[run["policy"]] = _statistic(run[measure], statistic)
    seconds = statistics.median(values[policy] for values in by_round.values() if policy in values)
    ratio = statistics.median(values[policy] / values["fcfs"] for values in by_round.values() if policy in values)
    guess, guess_base = (guesses[which][measure][statistic] for which in (policy, "fcfs"))
    off = ratio / (guess / guess_base) - 1
    cells = (
        f"{load:g}",
        policy,
        name,
        f"{seconds:.3g}",
        f"{ratio:.2f}",
        f"{guess:.3g}",
        f"{guess / guess_base:.2f}",
        f"{off:+.0%}",
    )
    return f"| {' | '.join(cells)} |"


def _statistic(values: Sequence[float], name: str) -> float:
    """As ``fastserve.simulator.summary`` has it."""
    return statistics.fmean(values) if name == "mean" else sorted(values)[math.ceil(0.95 * len(values)) - 1]
