"""Packing sequences of encoders on one token axis."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.core.encoding import TokenSequence
from fastserve.worker.encoder_batch import ENCODER_INPUTS, pack_sequences

A = TokenSequence((10, 11, 12), (0, 0, 1), (1,))
B = TokenSequence((20, 21, 22, 23), (), (2, 3))
C = TokenSequence((30,))


def packed(*sequences, names=ENCODER_INPUTS, **options):
    return {name: array.tolist() for name, array in pack_sequences(sequences, names, **options).items()}


def test_the_drawing_in_the_docstring_is_true():
    assert packed(A, B, C) == {
        "input_ids": [10, 11, 12, 20, 21, 22, 23, 30],
        "position_ids": [0, 1, 2, 0, 1, 2, 3, 0],
        "token_type_ids": [0, 0, 1, 0, 0, 0, 0, 0],
        "cumulative_sequence_length": [0, 3, 7, 8],
        "sequence_rows": [0, 3, 7],
        "logits_rows": [1, 5, 6],
    }


def test_types_are_those_of_the_graph_contract():
    arrays = pack_sequences([A, B, C], ENCODER_INPUTS)
    assert arrays.pop("cumulative_sequence_length").dtype == np.int32
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}
    assert all(array.flags["C_CONTIGUOUS"] for array in arrays.values())


def test_only_what_the_graph_takes_is_made():
    assert packed(A, B, names=("input_ids", "sequence_rows")) == {
        "input_ids": [10, 11, 12, 20, 21, 22, 23],
        "sequence_rows": [0, 3],
    }


def test_the_position_offset_moves_positions_and_nothing_else():
    moved, plain = packed(A, B, position_offset=2), packed(A, B)
    assert moved.pop("position_ids") == [2, 3, 4, 2, 3, 4, 5]
    del plain["position_ids"]
    assert moved == plain


def test_sequences_without_types_and_rows_have_type_0_and_no_rows():
    assert packed(B, C, names=("token_type_ids",)) == {"token_type_ids": [0] * 5}
    assert packed(C, C, names=("logits_rows",)) == {"logits_rows": []}


@pytest.mark.parametrize("types", [(0,), (0, 1, 0)], ids=["too few", "too many"])
def test_token_types_must_be_as_many_as_tokens(types):
    with pytest.raises(ValueError, match="not as many token types"):
        packed(A, TokenSequence((1, 2), types))


def test_random_sequences_come_back_from_the_packed_axis():
    random = np.random.default_rng(0)
    for _ in range(100):
        sequences = []
        for length in random.integers(1, 40, random.integers(1, 12)).tolist():
            types = tuple(random.integers(0, 2, length).tolist()) if random.integers(0, 2) else ()
            rows = tuple(random.integers(0, length, random.integers(0, 4)).tolist())
            sequences.append(TokenSequence(tuple(random.integers(0, 1000, length).tolist()), types, rows))
        arrays = pack_sequences(sequences, ENCODER_INPUTS, 2)
        ends = arrays["cumulative_sequence_length"]
        rows = iter(arrays["logits_rows"].tolist())
        for sequence, start, end in zip(sequences, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            length = len(sequence.token_ids)
            assert tuple(arrays["input_ids"][start:end].tolist()) == sequence.token_ids
            assert arrays["position_ids"][start:end].tolist() == list(range(2, length + 2))
            assert tuple(arrays["token_type_ids"][start:end].tolist()) == (sequence.token_type_ids or (0,) * length)
            assert [next(rows) - start for _ in sequence.rows] == list(sequence.rows)
        assert arrays["sequence_rows"].tolist() == ends[:-1].tolist() and next(rows, None) is None
