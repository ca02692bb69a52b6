"""fastserve::QuantizedGather against the weight it was packed from, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from fastserve.worker.kernels.quantized_weight import pack_weight, quantize_channels
from tests.synthetic.one_node_session import one_node_session

TYPES = {"ids": TensorProto.INT64, "weight": TensorProto.INT8, "weight_scale": TensorProto.FLOAT}


def session(k: int, n: int) -> ort.InferenceSession:
    return one_node_session("QuantizedGather", list(TYPES), TYPES, {"k": k, "n": n}, 2)


def feeds(k: int, n: int, ids: list[int]) -> tuple[Any, dict[str, Any]]:
    """The weight [k, n] and the node's inputs."""
    weight = np.random.default_rng(k + n).standard_normal((k, n)).astype(np.float32)
    packed, scale = pack_weight(weight)
    return weight, {"ids": np.array(ids, np.int64), "weight": packed, "weight_scale": scale}


@pytest.mark.parametrize(("k", "n"), [(8, 16), (7, 5), (64, 33), (576, 100)])
def test_a_row_is_the_heads_output_channel(k: int, n: int) -> None:
    ids = [0, n - 1, 3, 3, *range(n)]
    weight, given = feeds(k, n, ids)
    quantized, scale = quantize_channels(weight)
    (found,) = session(k, n).run(None, given)
    np.testing.assert_array_equal(found, (quantized.astype(np.float32) * scale).T[ids])


def test_no_tokens_give_no_rows() -> None:
    assert session(8, 16).run(None, feeds(8, 16, [])[1])[0].shape == (0, 8)


@pytest.mark.parametrize("wrong", [-1, 16])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(Exception, match=rf"fastserve::QuantizedGather: ids\[2\]: got {wrong}, allowed: 0 to 15"):
        session(8, 16).run(None, feeds(8, 16, [1, 2, wrong])[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.zeros((1, 2), np.int64)}, "ids: got [1, 2], allowed: 1 dimensions"),
        ({"weight": np.zeros((1, 2, 64), np.int8)}, "weight: got [1, 2, 64], allowed: [1, 3, 64]"),
        ({"weight_scale": np.zeros(15, np.float32)}, "weight_scale: got [15], allowed: [16]"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        session(8, 16).run(None, feeds(8, 16, [0])[1] | changes)
