"""Shows an evaluation to people, and writes it down for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastserve.errors import ToolError
from fastserve.tools.evaluation.comparison import Comparison
from fastserve.tools.evaluation.evaluation_task import Report

SERVED, FINE_TUNED, BASE = "served", "fine-tuned", "base"


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was found. ``reports``: by model, in the order to show them."""

    model: str
    dataset: Path
    task: str
    item_name: str
    items: int
    seconds: float
    """That the served model took."""
    reports: Mapping[str, Report]
    comparison: Comparison | None

    def as_json(self) -> Mapping[str, Any]:
        return {
            "model": self.model,
            "dataset": str(self.dataset),
            "task": self.task,
            self.item_name: self.items,
            "seconds": round(self.seconds, 3),
            "reports": {
                name: {"metrics": report.metrics, "notes": report.notes, **report.details}
                for name, report in self.reports.items()
            },
            "comparison": None if self.comparison is None else self.comparison.as_json(),
        }


def show(evaluation: Evaluation, out: Console) -> None:
    """The full reports, the models side by side, and whether the served one is its source."""
    speed = evaluation.items / evaluation.seconds if evaluation.seconds else 0.0
    out.print(f"{evaluation.model} on {evaluation.dataset}: {evaluation.task}", style="bold")
    out.print(f"{evaluation.items} {evaluation.item_name}, served in {evaluation.seconds:.1f} s ({speed:.0f} a second)\n")
    for name, report in evaluation.reports.items():
        for title, text in report.texts.items():
            out.print(f"{title}, {name}", style="bold")
            out.print(text)
    out.print(_side_by_side(evaluation.reports))
    for note in dict.fromkeys(note for report in evaluation.reports.values() for note in report.notes):
        names = [name for name, report in evaluation.reports.items() if note in report.notes]
        out.print(f"{', '.join(names)}: {note}", style="yellow")
    if evaluation.comparison is not None:
        _show_comparison(evaluation.comparison, evaluation.item_name, out)


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Numbers that are none (NaN) become null. Raises :class:`ToolError` when it cannot be written."""
    try:
        path.write_text(json.dumps(_finite(document), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ToolError(f"{path}: cannot be written ({error.strerror})") from None


def _side_by_side(reports: Mapping[str, Report]) -> Table:
    table = Table("", box=None, padding=(0, 2, 0, 0))
    names = [name for name in (BASE, FINE_TUNED, SERVED) if name in reports]
    for name in names:
        table.add_column(name, justify="right")
    if FINE_TUNED in reports:
        table.add_column(f"{SERVED} - {FINE_TUNED}", justify="right")
    measures = dict.fromkeys(measure for name in (SERVED, *names) for measure in reports[name].metrics)
    for measure in measures:
        values = [reports[name].metrics.get(measure) for name in names]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        if FINE_TUNED in reports:
            served, source = values[-1], values[-2]
            cells.append("-" if served is None or source is None else f"{served - source:+.4f}")
        table.add_row(measure, *cells)
    return table


def _show_comparison(comparison: Comparison, item_name: str, out: Console) -> None:
    allowed = f"tolerance {comparison.tolerance.share:g}"
    out.print(
        f"\nServed against fine-tuned: {comparison.differing} of {comparison.compared} {item_name} differ "
        f"(share {comparison.share:.4f}, {allowed}), {comparison.differing_answers} in the answer itself; "
        f"worst score difference {comparison.worst_score:.2g}."
    )
    if comparison.truncated:
        out.print(
            f"{comparison.truncated} {item_name} are longer than the source model can take at once and were not compared: the "
            "server reads them in windows. --parameter truncation=true makes it cut them off as well."
        )
    if comparison.places:
        out.print(f"The first that differ: {', '.join(comparison.places)}")
    if comparison.within_tolerance:
        out.print("The served model is the source model, within the tolerance.", style="bold green")
    elif not comparison.compared:
        out.print("Nothing could be compared.", style="bold red")
    else:
        out.print("The served model is NOT the source model within the tolerance.", style="bold red")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
