"""Is the served model the model it was made from? Item by item, not by their measures only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fastserve.tools.evaluation.evaluation_task import EvaluationTask
from fastserve.tools.evaluation.prediction import Predictions

_SHOWN_PLACES = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """``share``: of items that may differ, 0 to 1. ``score``: the distance of two scores from which an item differs."""

    share: float
    score: float


def default_tolerance(dtype: str, *, numeric: bool) -> Tolerance:
    """What arithmetic of ``dtype`` may change. In int8 scores move; an item differs when its answer does, and where the
    answer is a bare number, when that has moved far."""
    if dtype != "int8":
        return Tolerance(share=0.0, score=1e-4)
    return Tolerance(share=0.05, score=0.05 if numeric else math.inf)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Of the served model with its source. Items the source cut off are not compared: served reads all of them."""

    tolerance: Tolerance
    compared: int
    truncated: int
    differing: int
    differing_answers: int
    worst_score: float
    places: tuple[str, ...]
    """Of the first items that differ."""

    @property
    def share(self) -> float:
        return self.differing / self.compared if self.compared else 0.0

    @property
    def within_tolerance(self) -> bool:
        """Also false when nothing could be compared."""
        return self.compared > 0 and self.share <= self.tolerance.share

    def as_json(self) -> Mapping[str, Any]:
        return {
            "compared": self.compared,
            "truncated_by_source": self.truncated,
            "differing": self.differing,
            "differing_answers": self.differing_answers,
            "share": self.share,
            "worst_score_difference": self.worst_score,
            "tolerance": self.tolerance.share,
            "score_tolerance": self.tolerance.score if math.isfinite(self.tolerance.score) else None,
            "within_tolerance": self.within_tolerance,
            "first_differing": list(self.places),
        }


def compare(task: EvaluationTask[Any], served: Predictions, source: Predictions, tolerance: Tolerance) -> Comparison:
    """Both over the same items."""
    compared = [index for index in range(len(task.places)) if index not in source.truncated]
    differences = {index: task.difference(served.values[index], source.values[index]) for index in compared}
    differing = [
        index
        for index, found in differences.items()
        if found.answers or not found.score <= tolerance.score  # NaN differs
    ]
    return Comparison(
        tolerance=tolerance,
        compared=len(compared),
        truncated=len(source.truncated),
        differing=len(differing),
        differing_answers=sum(found.answers for found in differences.values()),
        worst_score=max((found.score for found in differences.values()), key=_nan_last, default=0.0),
        places=tuple(task.places[index] for index in differing[:_SHOWN_PLACES]),
    )


def _nan_last(score: float) -> tuple[bool, float]:
    return math.isnan(score), score
