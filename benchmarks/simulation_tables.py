"""Tables of simulated policies, for a terminal or (Markdown) for PERFORMANCE.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from fastserve.simulator.simulation import SRPT_ORACLE
from fastserve.simulator.summary import class_names

COMPUTED_AGAIN = ", computed again"
MLFQ = "skip_join_mlfq"
POLICIES = ("fcfs", "gittins", MLFQ, f"{MLFQ}, alpha 3 s", f"{MLFQ}{COMPUTED_AGAIN}", "vtc", SRPT_ORACLE)
Row = dict[str, Any]
_MEASURES = {("jct_s", "mean"): "mean JCT", ("jct_s", "p95"): "P95 JCT", ("normalized_latency_s", "p95"): "P95 s/token"}


def show(rows: Sequence[Row], console: Console) -> None:
    """Rows, in any order, as Markdown tables: ratios to ``fcfs`` at every load, then who pays, by class of length."""
    rows = sorted(rows, key=lambda row: (row["trace"], row["regime"], row["load"], _place(row["policy"])))
    for trace, regime in dict.fromkeys((row["trace"], row["regime"]) for row in rows):
        chosen = [row for row in rows if (row["trace"], row["regime"]) == (trace, regime)]
        if chosen[0]["policy"] != "fcfs":
            continue  # a slice, with nothing to compare with
        console.print(f"\n{trace}, {regime} bound, {chosen[0]['requests']:,} requests", highlight=False)
        for line in (*ratios(chosen), "", *by_class(chosen)):
            console.print(line, highlight=False, soft_wrap=True)


def _place(policy: str) -> tuple[int, str]:
    return (POLICIES.index(policy) if policy in POLICIES else len(POLICIES)), policy


def ratios(rows: Sequence[Row]) -> list[str]:
    """Of one trace and regime: each measure in seconds under fcfs, and as a share of that; mean JCT also over the oracle's."""
    policies = [name for name in dict.fromkeys(row["policy"] for row in rows) if name != "fcfs"]
    lines = [_line("load", "measure", "fcfs, s", *policies), _line("---", "---", *["---:"] * (len(policies) + 1))]
    for load in dict.fromkeys(row["load"] for row in rows):
        found = {row["policy"]: row for row in rows if row["load"] == load}
        for (measure, statistic), title in _MEASURES.items():
            base = found["fcfs"][measure][statistic]
            shares = (f"{found[name][measure][statistic] / base:.2f}" for name in policies)
            lines.append(_line(f"{load:g}", title, f"{base:.3g}", *shares))
        if SRPT_ORACLE in found:
            best = found[SRPT_ORACLE]["jct_s"]["mean"]
            shares = (f"{found[name]['jct_s']['mean'] / best:.2f}" for name in policies)
            lines.append(_line(f"{load:g}", f"mean JCT / {SRPT_ORACLE}", f"{found['fcfs']['jct_s']['mean'] / best:.2f}", *shares))
    return lines


def by_class(rows: Sequence[Row]) -> list[str]:
    """Mean JCT as a share of fcfs' at the load nearest to 0.9, by class of output length and of prompt length."""
    load = min((row["load"] for row in rows), key=lambda value: abs(value - 0.9))
    found = {row["policy"]: row for row in rows if row["load"] == load}
    policies = [name for name in found if name != "fcfs"]
    lines = [_line(f"tokens, load {load:g}", "requests", "fcfs, s", *policies), _line("---", *["---:"] * (len(policies) + 2))]
    for key, what in (("by_output_tokens", "answer"), ("by_prompt_tokens", "prompt")):
        for name in class_names():
            if name in (base := found["fcfs"][key]):
                mean = base[name]["jct_s"]["mean"]
                shares = (f"{found[policy][key][name]['jct_s']['mean'] / mean:.2f}" for policy in policies)
                lines.append(_line(f"{what} {name}", str(base[name]["requests"]), f"{mean:.3g}", *shares))
    return lines


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
