"""Rows of an encoder to scores, and scores and texts to output tensors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import StepFailed

FloatArray = npt.NDArray[np.float32]


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
NOT_FINITE = "the model gave a number that is not finite"


def finite(values: FloatArray) -> FloatArray:
    """``values`` as they are. Raises StepFailed when one is not finite: the model computed it, and it compares with nothing,
    so that an answer made of it would look like an empty one."""
    if not np.isfinite(values).all():
        raise StepFailed(NOT_FINITE)
    return values


def softmax(logits: FloatArray) -> FloatArray:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: FloatArray) -> FloatArray:
    """Element by element: 1 / (1 + exp(-x)) without its overflow, as exact for tiny shares as for large ones."""
    shares: FloatArray = np.exp(-np.logaddexp(0, -logits))
    return shares


def by_text(outputs: Iterable[FloatArray], counts: Iterable[int]) -> list[list[FloatArray]]:
    """``outputs``: of all windows, text by text; ``counts``: the number of windows of each text."""
    remaining = iter(outputs)
    return [list(itertools.islice(remaining, count)) for count in counts]


def mean_of_windows(outputs: Sequence[FloatArray], counts: Sequence[int]) -> list[FloatArray]:
    """One row [n] for each text: the mean of its windows' rows. ``outputs``: [n] for each window, text by text;
    ``counts``: the number of windows of each text."""
    return [
        windows[0] if len(windows) == 1 else np.mean(windows, axis=0, dtype=np.float32) for windows in by_text(outputs, counts)
    ]


def string_tensor(rows: Sequence[Sequence[str]]) -> npt.NDArray[np.object_]:
    """[B, n] of UTF-8 bytes, from B rows of n texts each."""
    tensor = np.empty((len(rows), len(rows[0])), np.object_)
    tensor[:] = [[text.encode() for text in row] for row in rows]
    return tensor


def json_tensor(values: Sequence[Any]) -> npt.NDArray[np.object_]:
    """[B, 1]: each value as JSON, characters beyond ASCII as they are. Raises StepFailed for a number that is not finite:
    the model computed it."""
    try:
        return string_tensor([[_JSON.encode(value)] for value in values])
    except ValueError:
        raise StepFailed(NOT_FINITE) from None
