"""Log-probabilities under the model's own distribution, before anything that sampling does to it."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from fastserve.core.logprobs import PositionLogprobs, TokenLogprob
from fastserve.worker.kernels.sampling import log_sum_exp

Logits = npt.NDArray[np.float32]


def log_probability(row: Logits, token_id: int) -> float:
    """Natural log of the probability of ``token_id`` under the logits ``row``, [vocab_size]."""
    return float(row[token_id]) - log_sum_exp(row)


def log_probabilities(row: Logits) -> Logits:
    """Natural logs of all probabilities under the logits ``row``, [vocab_size]."""
    logs: Logits = row - np.float32(log_sum_exp(row))
    return logs


def position_logprobs(row: Logits, token_id: int, count: int) -> PositionLogprobs:
    """``token_id`` and the ``count`` likeliest tokens under the logits ``row``, [vocab_size].

    Tokens of equal probability are ranked by id; a token outside the listed ones has one more than the number of
    likelier tokens. Depends on this row alone.
    """
    total = log_sum_exp(row)
    best = _likeliest(row, count)
    ranks = {candidate: rank for rank, candidate in enumerate(best, 1)}
    own_rank = ranks.pop(token_id, None) or 1 + int(np.count_nonzero(row > row[token_id]))
    own = TokenLogprob(token_id, float(row[token_id]) - total, own_rank)
    return own, *(TokenLogprob(other, float(row[other]) - total, rank) for other, rank in ranks.items())


def prompt_logprobs(rows: Logits, token_ids: Items[int], count: int) -> list[PositionLogprobs]:
    """For each row of logits [num_rows, vocab_size] the token that follows there in the prompt, and the likeliest ones."""
    return [position_logprobs(row, token_id, count) for row, token_id in zip(rows, token_ids, strict=True)]


def _likeliest(row: Logits, count: int) -> list[int]:
    """Ids of the ``count`` largest logits, the largest first, equal ones by id; never one the model rules out."""
    count = min(count, len(row))
    if count == 0:
        return []
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    candidates = np.flatnonzero((row >= threshold) & (row > -np.inf))
    order = np.argsort(-row[candidates], kind="stable")[:count]
    found: list[int] = candidates[order].tolist()
    return found
