"""How well predicted numbers follow the right ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence


def finite_number(text: str) -> float:
    """Raises ValueError for what is no number, or one that nothing can be compared with."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def correlations(right: Sequence[float], predicted: Sequence[float]) -> Mapping[str, float]:
    """Pearson's and Spearman's coefficients, from -1 to 1; NaN for fewer than two items or when one side is constant."""
    from scipy import stats

    if len(right) < 2:
        return {"Pearson": math.nan, "Spearman": math.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return {
            "Pearson": float(stats.pearsonr(right, predicted)[0]),
            "Spearman": float(stats.spearmanr(right, predicted)[0]),
        }
