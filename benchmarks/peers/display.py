"""The table and the picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ratios
import summary
from ratios import Figures
from rich.console import Console
from rich.table import Table
from rows import Row

_COLUMNS = ("tokens/s", "JCT mean", "P50", "P99", "TTFT mean", "P99", "peak MB")
_TITLES = {
    "at_once": "All requests at once",
    "poisson": "Poisson arrivals at 70 % of what the best peer can do",
    "single": "One request, alone",
}


def show(loads: Mapping[str, Figures], file: Path, console: Console) -> None:
    """Print all loads, the fastest first, and draw two of them to ``file``."""
    for load, figures in loads.items():
        table = Table(title=f"{_TITLES[load]} (medians; seconds)")
        for column in ("engine", *_COLUMNS, "runs, tokens/s"):
            table.add_column(column, justify="left" if column == "engine" else "right")
        for row, found in _sorted(figures):
            table.add_row(row.name, *_cells(found))
        console.print(table)
        for row, reason in figures.items():
            if isinstance(reason, str) and reason != summary.NOT_RUN:
                console.print(f"{row.name}: {reason}")
        for line in ratios.lines(figures):
            console.print(line)
    _draw(loads, file)
    console.print(f"drawn to {file}")


def _sorted(figures: Figures) -> list[tuple[Row, Mapping[str, Any]]]:
    measured = [(row, found) for row, found in figures.items() if not isinstance(found, str)]
    return sorted(measured, key=lambda item: -item[1]["tokens_per_s"])


def _cells(found: Mapping[str, Any]) -> list[str]:
    seconds = ("completion_mean", "completion_p50", "completion_p99", "first_token_mean", "first_token_p99")
    return [
        f"{found['tokens_per_s']:.1f}",
        *(f"{found[name]:.2f}" for name in seconds),
        f"{found['peak_bytes'] / 1e6:,.0f}",
        ", ".join(f"{run:.1f}" for run in found["runs"]),
    ]


def _draw(loads: Mapping[str, Figures], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(14, 5))
    panels = (
        ("at_once", "tokens_per_s", "output tokens/s, all at once"),
        ("poisson", "completion_mean", "mean JCT in s, Poisson"),
    )
    for axis, (load, measure, title) in zip(axes, panels, strict=True):
        ordered = sorted(_sorted(loads[load]), key=lambda item: item[1][measure])
        colours = ["tab:orange" if row.ours else "tab:blue" for row, _ in ordered]
        bars = axis.barh([row.name for row, _ in ordered], [found[measure] for _, found in ordered], color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.set(title=title)
        axis.margins(x=0.12)  # the labels
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
