"""The table of a comparison of policies: measured, and as the simulator has it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from policy_prediction import POLICIES
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
    """``predicted``: of each run. Medians over the rounds, in seconds; ratios to fcfs are medians of the rounds' own."""
    other = sum(run["answers_of_other_length"] for run in found["runs"])
    console.print(
        f"{len(found['runs'])} runs of {len(found['endings'])} requests; {other} answers were of another length than expected"
    )
    lines = ["| load | policy | measure | s | / fcfs | simulated s | simulated / fcfs | off by |"]
    lines.append("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for load in sorted({run["load"] for run in found["runs"]}):
        runs = [(run, guess) for run, guess in zip(found["runs"], predicted, strict=True) if run["load"] == load]
        for policy in dict.fromkeys(sorted((run["policy"] for run, _ in runs), key=POLICIES.index)):
            lines += [_line(load, policy, name, runs) for name in _MEASURES]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _line(load: float, policy: str, name: str, runs: Sequence[tuple[Found, Found]]) -> str:
    measure, statistic = _MEASURES[name]
    measured: dict[int, dict[str, float]] = {}
    guessed: dict[int, dict[str, float]] = {}
    for run, guess in runs:
        measured.setdefault(run["round"], {})[run["policy"]] = _statistic(run[measure], statistic)
        guessed.setdefault(run["round"], {})[run["policy"]] = guess[measure][statistic]
    (seconds, ratio), (guess_s, guess_ratio) = (_medians(policy, by_round) for by_round in (measured, guessed))
    cells = (f"{load:g}", policy, name, f"{seconds:.3g}", f"{ratio:.2f}", f"{guess_s:.3g}", f"{guess_ratio:.2f}")
    return f"| {' | '.join(cells)} | {ratio / guess_ratio - 1:+.0%} |"


def _medians(policy: str, by_round: Mapping[int, Mapping[str, float]]) -> tuple[float, float]:
    """Of seconds, and of their ratios to fcfs."""
    rounds = [values for values in by_round.values() if policy in values]
    return statistics.median(values[policy] for values in rounds), statistics.median(
        values[policy] / values["fcfs"] for values in rounds
    )


def _statistic(values: Sequence[float], name: str) -> float:
    """As ``fastserve.simulator.summary`` has it."""
    return statistics.fmean(values) if name == "mean" else sorted(values)[math.ceil(0.95 * len(values)) - 1]
