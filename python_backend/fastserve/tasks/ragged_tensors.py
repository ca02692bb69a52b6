"""Output tensors of rows of different lengths: the shorter ones are filled up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.tasks.answer_tensors import string_tensor


def ragged_strings(rows: Sequence[Sequence[str]]) -> npt.NDArray[np.object_]:
    """[B, longest row] of UTF-8 bytes, filled up with empty ones."""
    longest = max(map(len, rows))
    return string_tensor([[*row, *[""] * (longest - len(row))] for row in rows])


def ragged_numbers(rows: Sequence[Sequence[float]], fill: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """[B, longest row] of ``dtype``, filled up with ``fill``."""
    longest = max(map(len, rows))
    return np.array([[*row, *[fill] * (longest - len(row))] for row in rows], dtype).reshape(len(rows), longest)
