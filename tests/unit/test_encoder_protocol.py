"""Tensors of encoder requests to values, and answers to the outputs that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.errors import InvalidRequest
from fastserve.triton.encoder_protocol import parse_encoding, select_outputs


def strings(*rows):
    return np.array([[text if isinstance(text, bytes) else text.encode() for text in row] for row in rows], np.object_)


def test_each_row_is_a_text_and_each_pair_of_numbers_a_span():
    item = parse_encoding(
        {
            "text_input": strings(["Ada lives in London"], ["köttbullar"]),
            "head": np.array([[0, 3], [4, 7]], np.int32),
            "tail": np.array([[13, 19], [0, 1]], np.int32),
        },
        {"top_k": 3},
    )
    assert item.texts == {"text_input": ["Ada lives in London", "köttbullar"]}
    assert item.spans == {"head": [(0, 3), (4, 7)], "tail": [(13, 19), (0, 1)]}
    assert item.parameters == {"top_k": 3}


def test_a_list_of_texts_for_each_row_comes_row_by_row():
    item = parse_encoding({"text_input": strings(["x"], ["y"]), "candidate_labels": strings(["a", "b"], ["c", "d"])}, {})
    assert item.texts["candidate_labels"] == ["a", "b", "c", "d"]


def test_text_that_is_not_utf_8_is_refused_by_name():
    with pytest.raises(InvalidRequest, match=r"text_pair: got b'ab\\xff', allowed: valid UTF-8 \(byte 2 is not\)"):
        parse_encoding({"text_input": strings(["a"]), "text_pair": strings([b"ab\xff"])}, {})


@pytest.mark.parametrize("shape", [(0, 1), (2, 0)])
def test_a_tensor_without_values_is_refused_by_name(shape):
    with pytest.raises(InvalidRequest, match=r"candidate_labels: got .*\[., .\].* allowed: at least one value"):
        parse_encoding({"candidate_labels": np.empty(shape, np.object_)}, {})


def test_only_the_outputs_that_were_asked_for_are_sent_in_the_order_they_were():
    answer = {"label": strings(["a"]), "score": np.zeros((1, 1), np.float32), "result": strings(["{}"])}
    assert list(select_outputs(answer, ("result", "label"))) == ["result", "label"]
