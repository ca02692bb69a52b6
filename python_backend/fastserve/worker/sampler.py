"""Logits to tokens. A row's token depends on its own logits, parameters, history and (seed, position) and on nothing else:
the same request draws the same tokens alone and in a crowd.

The order of the steps is transformers' (``GenerationMixin``): penalties, minimum length, forbidden words, what the answer has to
look like, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items

import numpy as np

from fastserve.core.beam_search import BeamCandidates
from fastserve.core.plan import SampledToken
from fastserve.core.sequence import Sequence
from fastserve.errors import FastServeError, InvalidRequest, StepFailed
from fastserve.worker.beam_candidates import beam_candidates
from fastserve.worker.kernels.sampling import draw_token, largest_tokens
from fastserve.worker.logprobs import Logits, log_probabilities, log_probability, position_logprobs

logger = logging.getLogger(__name__)

_MASK64 = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A uniform number in [0, 1) that is a pure function of the 64-bit ``seed`` and the output ``position``.

    Counter-based: SplitMix64's finaliser (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014)
    applied to the seed and again to the counter, so neighbouring seeds and positions are unrelated.
    """
    return (_mix((_mix(seed & _MASK64) + position * 0x9E3779B97F4A7C15) & _MASK64) >> 11) * 2.0**-53


def answer_seed(seed: int, index: int) -> int:
    """The seed of the answer ``index`` of a request; the first one has the request's own."""
    return seed if index == 0 else _mix((_mix(seed & _MASK64) + index * 0xD1342543DE82EF95) & _MASK64)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Sampler:
    """Draws one token for each row of logits, or finds what a beam may go on with. Stateless."""

    def sample(self, logits: Logits, sequences: Items[Sequence]) -> list[SampledToken | BeamCandidates | FastServeError]:
        """``logits``: [num_rows, vocab_size], row i belongs to ``sequences[i]``; not modified.

        What goes wrong in a row (logits that are not finite, parameters that exclude every token) is the error of that
        row alone.
        """
        if not sequences:
            return []
        logits = np.ascontiguousarray(logits, np.float32)
        best = largest_tokens(logits).tolist()
        return [
            SampledToken(first)
            if first >= 0 and sequence.wants_likeliest_only
            else self._sample_or_fail(logits[row], sequence, first)
            for row, (sequence, first) in enumerate(zip(sequences, best, strict=True))
        ]

    def _sample_or_fail(self, row: Logits, sequence: Sequence, best: int) -> SampledToken | BeamCandidates | FastServeError:
        try:
            return self._sample_row(row, sequence, best)
        except FastServeError as error:
            return error
        except Exception as error:  # a bug met by one request's parameters: its neighbours keep their tokens
            logger.exception("request %d could not be sampled", sequence.request.request_id)
            return StepFailed(f"the token could not be sampled ({type(error).__name__}: {error})")

    def _sample_row(self, row: Logits, sequence: Sequence, best: int) -> SampledToken | BeamCandidates | FastServeError:
        """``best``: the likeliest token, -1 when a logit is not a number or the largest is infinite."""
        params = sequence.request.params
        if best < 0:
            return StepFailed("the model's logits for this request are not finite")
        if params.num_beams > 1:
            scores = edit_logits(log_probabilities(row), sequence)
            return beam_candidates(scores, params) if np.isfinite(scores.max()) else _nothing_left(sequence)
        token_id = best if params.takes_likeliest else _choose(row, sequence)
        if token_id < 0:
            return _nothing_left(sequence)
        return SampledToken(
            token_id,
            log_probability(row, token_id) if params.return_logprobs else None,
            position_logprobs(row, token_id, params.logprobs) if params.logprobs is not None else None,
        )


def _choose(row: Logits, sequence: Sequence) -> int:
    """A token of the edited row, or -1 when none is left."""
    params, row = sequence.request.params, edit_logits(row, sequence)
    if params.greedy:
        return int(largest_tokens(row[None])[0])
    number = uniform(answer_seed(params.seed, sequence.index), len(sequence.output_token_ids))
    return draw_token(row, params.temperature, params.top_k, params.top_p, params.min_p, number)


def _nothing_left(sequence: Sequence) -> InvalidRequest:
    """Which parameter excluded the last token there was to choose."""
    params = sequence.request.params
    if len(sequence.output_token_ids) < params.min_tokens:
        return InvalidRequest("min_tokens", params.min_tokens, "a value that leaves a token to choose beside stop_token_ids")
    return InvalidRequest("bad_words", params.bad_words, "words that leave a token to choose")


def edit_logits(row: Logits, sequence: Sequence) -> Logits:
    """The row after every step that depends on the answer so far; excluded tokens are -inf. [vocab_size], a copy unless there is
    nothing to change."""
    params = sequence.request.params
    if not changes_logits(sequence):
        return row
    row = row.copy()
    if params.has_penalties:
        _penalise(row, sequence)
    if len(sequence.output_token_ids) < params.min_tokens:
        row[list(params.stop_token_ids)] = -np.inf
    for word in params.bad_words:
        *beginning, last = word
        if not beginning or sequence.output_token_ids[-len(beginning) :] == beginning:
            row[last] = -np.inf
    if sequence.constraint is not None:
        bits = np.frombuffer(sequence.constraint.allowed(), np.uint8)
        row[np.unpackbits(bits, count=len(row), bitorder="little") == 0] = -np.inf
    return row


def changes_logits(sequence: Sequence) -> bool:
    """Whether :func:`edit_logits` may do anything."""
    params = sequence.request.params
    plain = not params.has_penalties and not params.min_tokens and not params.bad_words
    return not plain or sequence.constraint is not None


def _penalise(row: Logits, sequence: Sequence) -> None:
    """Repetition penalty over prompt and output (Keskar et al., CTRL, 2019, section 4.1); presence and frequency
    penalties over the output, as in the OpenAI API."""
    params = sequence.request.params
    outputs, counts = np.unique(np.array(sequence.output_token_ids, np.int64), return_counts=True)
    if params.repetition_penalty != 1.0:
        seen = np.union1d(np.array(sequence.request.prompt_token_ids, np.int64), outputs)
        values = row[seen]
        penalty = np.float32(params.repetition_penalty)
        row[seen] = np.where(values < 0, values * penalty, values / penalty)
    row[outputs] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)
