"""Smoothing moves size from activations to weights and changes no product; a tied embedding keeps its rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.export.rewrites.packed_products import constant_products
from fastserve.export.rewrites.quantization import quantize_products
from fastserve.export.rewrites.smoothing import find_smoothings, smooth
from tests.unit.small_graphs import FEEDS, Array, model, weight

K = 8
LARGE = 3
"""A channel that is a hundred times as large as the others."""


class RowNorm(OpRun):
    op_domain = "fastserve"

    def _run(self, x, weight, epsilon=None, centred=None):  # type: ignore[no-untyped-def]
        return (x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight,)


class GatedActivation(OpRun):
    op_domain = "fastserve"

    def _run(self, x, activation=None):  # type: ignore[no-untyped-def]
        gate, value = np.split(x, 2, axis=-1)
        return (gate / (1 + np.exp(-gate.clip(-80, 80))) * value,)


def result(graph_model: ir.Model) -> Array:
    proto = ir.to_proto(graph_model)
    used = {value.name for value in proto.graph.input}
    feeds = {name: array for name, array in FEEDS.items() if name in used}
    return np.asarray(ReferenceEvaluator(proto, new_ops=[RowNorm, GatedActivation]).run(None, feeds)[0])


def small_decoder() -> ir.Model:
    """An embedding, a gated layer behind a norm, and a head that shares the embedding's weight behind another."""
    scale = np.ones(K, np.float32)
    scale[LARGE] = 100
    shapes = {"gate_up": (K, 12), "down": (6, K)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0, name="model.embed/node"),
        helper.make_node("RowNorm", ["x", "scale"], ["n"], "model.norm/node", domain="fastserve", epsilon=1e-5, centred=0),
        helper.make_node("MatMul", ["n", "gate_up"], ["g"], name="model.layers.0.mlp/node"),
        helper.make_node("GatedActivation", ["g"], ["a"], "model.layers.0.mlp/gate", domain="fastserve", activation="silu"),
        helper.make_node("MatMul", ["a", "down"], ["d"], name="model.layers.0.down/node"),
        helper.make_node("RowNorm", ["d", "last"], ["l"], "model.last/node", domain="fastserve", epsilon=1e-5, centred=0),
        helper.make_node("Gemm", ["l", "table"], ["logits"], name="model.head/node", transB=1),
    ]
    constants = {"table": weight(9, K), "scale": scale, "last": scale[::-1].copy()}
    constants |= {name: weight(*shape) for name, shape in shapes.items()}
    made = model(nodes, ("logits", ["num_tokens", 9]), **constants)
    for node in made.graph:  # shapes of our own operators, as the export gives them
        for value in node.outputs:
            value.shape = value.shape or ir.Shape(["num_tokens", 6 if value.name == "a" else 12 if value.name == "g" else K])
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return made


def peaks() -> dict[str, Array]:
    large = np.ones(K, np.float32)
    large[LARGE] = 100
    return {"norm": large, "last": large[::-1].copy(), "layers.0.down": np.arange(1, 7, dtype=np.float32)}


def smooth_all(graph_model: ir.Model, known: dict[str, Array], alpha: float = 0.5) -> None:
    for smoothing in find_smoothings(graph_model.graph, known):
        smooth(graph_model.graph, smoothing, smoothing.factors(alpha))
    RemoveUnusedNodesPass()(graph_model)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_products_are_the_same_and_large_channels_smaller(alpha: float) -> None:
    found = small_decoder()
    before = result(found)
    smooth_all(found, peaks(), alpha)
    np.testing.assert_allclose(result(found), before, rtol=1e-4, atol=1e-4)
    norm = next(node for node in found.graph if node.op_type == "RowNorm")
    assert norm.inputs[1] is not None and norm.inputs[1].const_value is not None
    scale = norm.inputs[1].const_value.numpy()
    assert scale.max() / np.median(scale) < 100 ** (1 - alpha) * 3


def test_a_norm_that_others_read_is_left_alone() -> None:
    found = small_decoder()
    norm = next(node for node in found.graph if node.op_type == "RowNorm")
    reader = ir.node("Neg", [norm.outputs[0]])
    found.graph.insert_after(norm, [reader])
    assert not find_smoothings(found.graph, {"norm": peaks()["norm"]})
    assert norm.inputs[1] is not None and norm.inputs[1].name == "scale"


def test_channels_that_were_never_seen_change_nothing_by_infinities() -> None:
    found = small_decoder()
    before = result(found)
    smooth_all(found, {"norm": np.zeros(K, np.float32)})
    np.testing.assert_allclose(result(found), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smoothed", [False, True])
def test_int8_takes_the_head_and_the_embedding_that_shares_its_weight(smoothed: bool) -> None:
    found = small_decoder()
    if smoothed:
        smooth_all(found, peaks())
    quantize_products(found.graph, constant_products(found.graph), "int8")
    RemoveUnusedNodesPass()(found)
    kinds = [node.op_type for node in found.graph]
    assert kinds.count("QuantizedMatMul") == 3
    assert kinds.count("QuantizedGather") == 1
    assert not {"Gather", "Gemm", "MatMul"} & set(kinds)
    stored = {value.name: value.const_value for value in found.graph.initializers.values()}
    largest = max(tensor.size for tensor in stored.values() if tensor is not None and tensor.dtype == ir.DataType.FLOAT)
    assert largest <= 12, "no fp32 weight stays beside its int8 form"
