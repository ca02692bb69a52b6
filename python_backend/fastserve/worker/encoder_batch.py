"""Packing for encoders: whole sequences on one flat token axis, never padded, nothing cached.

::

    sequence                    A            B               C
    input_ids                   a0  a1  a2   b0  b1  b2  b3  c0       int64 [num_tokens]
    position_ids                 0   1   2    0   1   2   3   0       int64 [num_tokens], position_offset added
    token_type_ids               0   0   1    0   0   1   1   0       int64 [num_tokens]
    cumulative_sequence_length   0  3  7  8                           int32 [num_seqs + 1]
    sequence_rows                0  3  7                              int64 [num_seqs]
    logits_rows                  1  5  6      (A's row 1, B's 2, 3)   int64 [num_rows]
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import TokenSequence

ENCODER_INPUTS = frozenset(
    ("input_ids", "position_ids", "token_type_ids", "cumulative_sequence_length", "sequence_rows", "logits_rows")
)
"""Everything the graph of an encoder may take."""


def pack_sequences(
    sequences: Sequence[TokenSequence], names: Collection[str], position_offset: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """The inputs ``names`` of a graph, of :data:`ENCODER_INPUTS`, for these sequences in this order.

    ``position_offset`` is added to position_ids only (RoBERTa counts from 2). Raises ValueError when the token types of a
    sequence are not as many as its tokens.
    """
    lengths = np.array([len(sequence.token_ids) for sequence in sequences], np.int32)
    cumulative = np.zeros(len(sequences) + 1, np.int32)
    np.cumsum(lengths, out=cumulative[1:])
    starts, num_tokens = cumulative[:-1], int(cumulative[-1])
    arrays: dict[str, npt.NDArray[Any]] = {"cumulative_sequence_length": cumulative}
    if "input_ids" in names:
        arrays["input_ids"] = _concatenate((sequence.token_ids for sequence in sequences), num_tokens)
    if "position_ids" in names:
        arrays["position_ids"] = np.arange(position_offset, num_tokens + position_offset) - np.repeat(starts, lengths)
    if "token_type_ids" in names:
        arrays["token_type_ids"] = _token_type_ids(sequences, num_tokens)
    if "sequence_rows" in names:
        arrays["sequence_rows"] = starts.astype(np.int64)
    if "logits_rows" in names:
        counts = [len(sequence.rows) for sequence in sequences]
        arrays["logits_rows"] = _concatenate((sequence.rows for sequence in sequences), sum(counts)) + np.repeat(starts, counts)
    return {name: arrays[name] for name in names}


def _concatenate(parts: Iterable[Sequence[int]], total: int) -> npt.NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(parts), np.int64, total)


def _token_type_ids(sequences: Sequence[TokenSequence], num_tokens: int) -> npt.NDArray[np.int64]:
    """A sequence without token types has 0 everywhere."""
    if not any(sequence.token_type_ids for sequence in sequences):
        return np.zeros(num_tokens, np.int64)
    if any(sequence.token_type_ids and len(sequence.token_type_ids) != len(sequence.token_ids) for sequence in sequences):
        raise ValueError("a sequence has not as many token types as tokens")
    return _concatenate((sequence.token_type_ids or (0,) * len(sequence.token_ids) for sequence in sequences), num_tokens)
