"""Padding of whole sequences to one length."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.core.encoding import TokenSequence
from fastserve.worker.padded_batch import pad_sequences

ALL = {"input_ids": "int64", "attention_mask": "int64", "token_type_ids": "int64"}


def test_sequences_are_filled_up_on_the_right_to_the_longest():
    arrays = pad_sequences([TokenSequence((1, 2, 3), (0, 1, 1)), TokenSequence((4,)), TokenSequence((5, 6))], ALL, 9)
    assert arrays["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_one_sequence_is_not_padded():
    arrays = pad_sequences([TokenSequence((7, 8))], ALL, 9)
    assert arrays["input_ids"].tolist() == [[7, 8]]
    assert arrays["attention_mask"].tolist() == [[1, 1]]


def test_only_the_inputs_of_the_graph_are_made_in_their_types():
    arrays = pad_sequences([TokenSequence((1, 2), (0, 1))], {"attention_mask": "int32", "input_ids": "int64"})
    assert {name: str(array.dtype) for name, array in arrays.items()} == {"attention_mask": "int32", "input_ids": "int64"}


def test_token_types_must_be_as_many_as_tokens():
    with pytest.raises(ValueError, match="not as many token types as tokens"):
        pad_sequences([TokenSequence((1, 2), (0,))], ALL)
