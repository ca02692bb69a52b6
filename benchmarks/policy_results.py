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


def summarize_costs(found: Found, simulated_s: float, console: Console) -> None:
    """``simulated_s``: what the simulator makes of everybody asking at once."""
    terms = ", ".join(f"{name[:-2]} {cost * 1e6:.3g}" for name, cost in found["costs_s"].items())
    console.print(f"us of a step and of each token, row, position read and pair in it: {terms}")
    console.print(f"all at once: {found['all_at_once_s']:.1f} s, simulated {simulated_s:.1f} s")


def summarize_runs(found: Found, predicted: Sequence[Found], console: Console) -> None:
    """Medians over the rounds, in seconds; ratios to fcfs are medians of the rounds' own."""
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
