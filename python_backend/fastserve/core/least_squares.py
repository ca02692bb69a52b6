"""Least squares over a few quantities whose coefficients cannot be negative, from sums that are updated sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items

_DEPENDENT = 1e-9
"""A quantity of which less than this share is not a combination of those before it says nothing of its own."""


class Moments:
    """Weighted sums over samples (quantities x, value y): of x x^T (the lower triangle, row by row), then of x y."""

    def __init__(self, size: int) -> None:
        """``size``: how many quantities a sample has."""
        self._size = size
        self._sums = [0.0] * (size * (size + 1) // 2 + size)

    def copy(self) -> Moments:
        copy = Moments(self._size)
        copy._sums = list(self._sums)
        return copy

    def add(self, quantities: tuple[float, ...], value: float, *, keep: float = 1.0, anchor: Moments | None = None) -> None:
        """Count a sample once and everything before it ``keep`` times; what ``anchor`` thereby lost is put back."""
        products = [x * other for row, x in enumerate(quantities) for other in quantities[: row + 1]]
        products += [x * value for x in quantities]
        if anchor is None:
            self._sums = [total * keep + product for total, product in zip(self._sums, products, strict=True)]
        else:
            lost = 1.0 - keep
            sums = zip(self._sums, products, anchor._sums, strict=True)
            self._sums = [total * keep + product + kept * lost for total, product, kept in sums]

    def fit(self) -> list[float]:
        """The coefficients, none below 0, with (nearly) the least squared error: of those that would be negative, the one that
        matters most is set to 0 until there are none. What samples do not tell apart is the earlier quantity's."""
        size = self._size
        rows = [self._sums[row * (row + 1) // 2 :][: row + 1] for row in range(size)]
        scale = [1.0 / math.sqrt(rows[index][index]) if rows[index][index] > 0.0 else 0.0 for index in range(size)]
        scaled = [[x * scale[row] * scale[column] for column, x in enumerate(rows[row])] for row in range(size)]
        values = [x * scale[row] for row, x in enumerate(self._sums[-size:])]
        used = [index for index in range(size) if scale[index]]
        while True:
            found = _solve([[scaled[max(i, j)][min(i, j)] for j in used] for i in used], [values[index] for index in used])
            lowest = min(found, default=0.0)
            if lowest >= 0.0:
                break
            del used[found.index(lowest)]
        coefficients = [0.0] * size
        for index, coefficient in zip(used, found, strict=True):
            coefficients[index] = coefficient * scale[index]
        return coefficients


def _solve(matrix: list[list[float]], values: Items[float]) -> list[float]:
    """Of a symmetric system without negative eigenvalues and with a diagonal of 1: an unknown that depends on those before it
    is 0. Changes ``matrix``."""
    size, right = len(matrix), list(values)
    free = []
    for pivot in range(size):
        row = matrix[pivot]
        if row[pivot] <= _DEPENDENT:
            continue
        free.append(pivot)
        for below in range(pivot + 1, size):
            factor = matrix[below][pivot] / row[pivot]
            if factor:
                target = matrix[below]
                for column in range(pivot, size):
                    target[column] -= factor * row[column]
                right[below] -= factor * right[pivot]
    found = [0.0] * size
    for pivot in reversed(free):
        known = sum(matrix[pivot][column] * found[column] for column in free if column > pivot)
        found[pivot] = (right[pivot] - known) / matrix[pivot][pivot]
    return found
