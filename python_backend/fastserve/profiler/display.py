"""The figures of a measurement, for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from fastserve.profiler.report import RUN

_MOST_OPERATORS = 12


def show(figures: dict[str, Any], out: Console) -> None:
    groups = figures["steps"]
    table = Table(box=None)
    table.add_column("ms of an iteration")
    for name in groups:
        table.add_column(name, justify="right")
        table.add_column("%", justify="right")
    for label, values in _rows(groups):
        cells = [cell for value, group in zip(values, groups.values(), strict=True) for cell in _cells(value, group)]
        table.add_row(label, *cells)
    out.print(table)
    for name, group in groups.items():
        out.print(
            f"{name}: {group['number']} iterations of {group['tokens']:.1f} tokens for {group['answers']:.1f} answers, "
            f"median {group['median_ms']:.2f} ms, Python {group['python_ms']:.2f} ms ({group['python_share']:.1%})"
        )
    out.print(
        f"{figures['output_tokens']} output tokens in {figures['seconds']:.2f} s: "
        f"{figures['output_tokens_per_s']:.1f} output tokens/s"
    )
    if figures["operators"]:
        _show_operators(figures["operators"], out)


def _rows(groups: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    first = next(iter(groups.values()))
    for phase in first["phases_ms"]:
        yield phase, [group["phases_ms"][phase] for group in groups.values()]
        if phase == RUN:
            for kind in first.get("run_ms", ()):
                yield f"  {kind}", [group["run_ms"][kind] for group in groups.values()]
    yield "all", [group["mean_ms"] for group in groups.values()]


def _cells(value: float, group: dict[str, Any]) -> tuple[str, str]:
    return f"{value:.3f}", f"{100 * value / group['mean_ms']:.1f}"


def _show_operators(operators: dict[str, float], out: Console) -> None:
    table = Table(box=None)
    table.add_column("operator")
    table.add_column("% of runs", justify="right")
    for name, share in list(operators.items())[:_MOST_OPERATORS]:
        table.add_row(name, f"{100 * share:.1f}")
    out.print(table)
