"""What beams may go on with: the likeliest tokens of a row, for the search to choose from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastserve.core.beam_search import BeamCandidates
from fastserve.core.request import SamplingParams
from fastserve.worker.logprobs import Logits


def beam_candidates(row: Logits, params: SamplingParams) -> BeamCandidates:
    """``row``: log-probabilities [vocab_size], those of excluded tokens -inf. Equal ones are taken by id."""
    best = _best(row, params.num_beams)
    going = row.copy()
    going[list(params.stop_token_ids)] = -np.inf
    chosen = dict.fromkeys([*best.tolist(), *_best(going, params.num_beams).tolist()])
    return BeamCandidates(tuple((token_id, float(row[token_id])) for token_id in chosen))


def _best(row: Logits, count: int) -> npt.NDArray[np.int64]:
    """Ids of the ``count`` largest values that are finite, in no order."""
    count = min(count, len(row))
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    candidates = np.flatnonzero((row >= threshold) & (row > -np.inf))
    best: npt.NDArray[np.int64] = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
    return best
