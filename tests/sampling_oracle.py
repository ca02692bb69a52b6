"""What sampling should do, step by step in NumPy: the oracle of the kernels that do it, itself held to transformers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastserve.core.request import SamplingParams
from fastserve.core.sequence import Sequence
from fastserve.worker.kernels.sampling import Logits
from fastserve.worker.sampler import edit_logits


def process_logits(row: Logits, sequence: Sequence) -> Logits:
    """The row after every step that changes it; excluded tokens are -inf. Returns a new array, [vocab_size]."""
    params = sequence.request.params
    row = np.array(edit_logits(row.astype(np.float32), sequence))
    if params.greedy or not np.isfinite(row.max()):
        return row
    row /= np.float32(params.temperature)
    if 0 < params.top_k < len(row):
        kth = np.partition(row, len(row) - params.top_k)[len(row) - params.top_k]
        row[row < kth] = -np.inf
    if params.top_p < 1.0:
        _keep_top_p(row, params)
    if params.min_p > 0.0:
        row[row < np.max(row) + np.log(params.min_p)] = -np.inf
    return row


def _keep_top_p(row: Logits, params: SamplingParams) -> None:
    """Nucleus sampling (Holtzman et al., 2020): the smallest set of tokens whose probability reaches top_p."""
    weights = np.exp(row.astype(np.float64) - float(row.max()))
    candidates = np.flatnonzero(weights)
    order = candidates[np.argsort(row[candidates], kind="stable")][::-1]  # the likeliest first
    mass = weights[order] / float(weights.sum())
    kept = order[np.cumsum(mass) - mass < params.top_p]
    values = row[kept]
    row[:] = -np.inf
    row[kept] = values


def draw(row: Logits, number: float) -> int:
    """The token at quantile ``number`` of the distribution softmax(row), in id order. [vocab_size] -> id."""
    candidates = np.flatnonzero(row > -np.inf)
    cumulative = np.cumsum(_softmax(row[candidates]))
    index = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return int(candidates[min(index, len(candidates) - 1)])


def _softmax(values: Logits) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.exp(values.astype(np.float64) - float(values.max()))
    weights /= weights.sum()
    return weights
