"""The report of a comparison: tables for a terminal, a file of curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastserve.errors import ToolError
from fastserve.simulator.summary import MEASURES, class_names

_TITLES = {"ttft_s": "TTFT", "normalized_latency_s": "s / output token", "jct_s": "JCT"}


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Everything by policy and load, then the P95 by class of length."""
    table = Table(title="Seconds: mean / P95, in brackets as a share of the first policy's at that load")
    for column in ("load", "policy", *_TITLES.values(), "tokens/s", "recomputed", "swapped GB"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=column == "policy")
    first: dict[float, dict[str, Any]] = {}
    for row in rows:
        base = first.setdefault(row["load"], row)
        cells = [_beside(row[measure], base[measure]) for measure in MEASURES]
        cells += [f"{row['output_tokens_per_s']:.1f}", str(row["preemptions"]), f"{row['swapped_bytes'] / 1e9:.1f}"]
        table.add_row(f"{row['load']:g}", row["policy"], *cells, end_section=row["policy"] == rows[-1]["policy"])
    console.print(table)
    for key, what in (("by_prompt_tokens", "prompt"), ("by_output_tokens", "output")):
        _show_classes(rows, key, what, console)


def _show_classes(rows: Sequence[dict[str, Any]], key: str, what: str, console: Console) -> None:
    names = [name for name in class_names() if any(name in row[key] for row in rows)]
    for measure, title in _TITLES.items():
        table = Table(title=f"{title} by {what} tokens, seconds: P95")
        for column in ("load", "policy", *names):
            table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=column == "policy")
        for row in rows:
            cells = [f"{row[key][name][measure]['p95']:.3g}" if name in row[key] else "" for name in names]
            table.add_row(f"{row['load']:g}", row["policy"], *cells, end_section=row["policy"] == rows[-1]["policy"])
        console.print(table)


def _pair(statistics: dict[str, float]) -> str:
    return f"{statistics['mean']:.3g} / {statistics['p95']:.3g}"


def _beside(statistics: dict[str, float], base: dict[str, float]) -> str:
    if statistics is base:
        return _pair(statistics)
    shares = " / ".join(f"{statistics[name] / base[name]:.2f}" for name in ("mean", "p95"))
    return f"{_pair(statistics)} ({shares})"


def require_matplotlib() -> None:
    """Raises ToolError that says how to install it."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ModuleNotFoundError:
        raise ToolError("matplotlib is not installed: pip install 'triton-fastserve[plot]'") from None


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Mean and P95 of each measure against the load, a line for each policy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(MEASURES), figsize=(5 * len(MEASURES), 8), sharex=True)
    for line, statistic in zip(axes, ("mean", "p95"), strict=True):
        for axis, measure in zip(line, MEASURES, strict=True):
            for policy in dict.fromkeys(row["policy"] for row in rows):
                points = sorted((row["load"], row[measure][statistic]) for row in rows if row["policy"] == policy)
                axis.plot(*zip(*points, strict=True), marker="o", label=policy)
            axis.set(title=f"{_TITLES[measure]}, {statistic}, s", yscale="log", xlabel="load")
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
