"""Rewrites for decoders leave results alone and stay away from what only looks alike: small graphs, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from fastserve.export.rewrites.gated_activation import fuse_gated_activations
from fastserve.export.rewrites.norms import fuse_norms, fuse_residual_sums
from fastserve.export.rewrites.projections import Projection, split_projections
from fastserve.export.rewrites.sampled_rows import pick_rows_directly
from tests.unit.small_graphs import Array, model, result, weight

EMBED = helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0)  # [num_tokens, 8]
TABLE = weight(9, 8)


def rms_norm(x: str, y: str, *, exponent: str = "two", axes: str = "last", scale: str = "scale") -> list[Any]:
    """As torch exports it. ``exponent``, ``axes``, ``scale``: constants of the graph."""
    return [
        helper.make_node("Pow", [x, exponent], [f"{y}.square"]),
        helper.make_node("ReduceMean", [f"{y}.square", axes], [f"{y}.mean"], keepdims=1),
        helper.make_node("Add", [f"{y}.mean", "epsilon"], [f"{y}.total"]),
        helper.make_node("Sqrt", [f"{y}.total"], [f"{y}.root"]),
        helper.make_node("Reciprocal", [f"{y}.root"], [f"{y}.factor"]),
        helper.make_node("Mul", [x, f"{y}.factor"], [f"{y}.scaled"]),
        helper.make_node("Mul", [scale, f"{y}.scaled"], [y], name=f"layers.0.{y}/node_mul"),
    ]


CONSTANTS: dict[str, Array] = {
    "table": TABLE,
    "two": np.array(2.0, np.float32),
    "three": np.array(3.0, np.float32),
    "last": np.array([-1]),
    "first": np.array([0]),
    "epsilon": np.array(1e-5, np.float32),
    "scale": weight(8),
    "number": np.array([1.5], np.float32),
}


def graph_of(*nodes: Any, **constants: Array) -> ir.Model:
    return model([EMBED, *nodes], ("y", ["num_tokens", 8]), **CONSTANTS, **constants)


def own(graph_model: ir.Model) -> list[str]:
    return [node.op_type for node in graph_model.graph if node.domain == "fastserve"]


def test_a_norm_that_is_spelled_out_is_one_operation() -> None:
    found = graph_of(*rms_norm("x", "y"))
    fuse_norms(found.graph)
    (norm,) = [node for node in found.graph if node.domain == "fastserve"]
    assert norm.inputs[0] is not None and norm.inputs[1] is not None
    assert (norm.inputs[0].name, norm.inputs[1].name, norm.outputs[0].name) == ("x", "scale", "y")
    assert norm.attributes["epsilon"].as_float() == pytest.approx(1e-5)
    assert norm.attributes["centred"].as_int() == 0


@pytest.mark.parametrize(
    "changes", [{"exponent": "three"}, {"axes": "first"}, {"scale": "number"}], ids=["cubes", "over tokens", "a number as weight"]
)
def test_what_is_no_norm_of_rows_stays(changes: dict[str, str]) -> None:
    found = graph_of(*rms_norm("x", "y", **changes))
    before = result(found)
    fuse_norms(found.graph)
    assert own(found) == []
    np.testing.assert_array_equal(result(found), before)


def test_a_norm_of_one_value_by_the_size_of_another_stays() -> None:
    nodes = rms_norm("x", "y")
    nodes[0] = helper.make_node("Pow", ["other", "two"], ["y.square"])
    found = graph_of(helper.make_node("Neg", ["x"], ["other"]), *nodes)
    fuse_norms(found.graph)
    assert own(found) == []


def test_a_norm_makes_the_residual_sum_that_others_read() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["branch"]),
        helper.make_node("Add", ["x", "branch"], ["sum"]),
        *rms_norm("sum", "n"),
        helper.make_node("Add", ["sum", "n"], ["y"]),
    ]
    found = graph_of(*nodes)
    fuse_norms(found.graph)
    fuse_residual_sums(found.graph)
    norm = next(node for node in found.graph if node.domain == "fastserve")
    last = found.graph.outputs[0].producer()
    assert [value.name for value in norm.inputs if value is not None] == ["x", "scale", "branch"]
    assert last is not None and list(last.inputs) == [norm.outputs[1], norm.outputs[0]]
    assert [node.op_type for node in found.graph if node.outputs[0].name == "sum"] == []


def test_a_sum_with_a_constant_is_no_residual() -> None:
    found = graph_of(helper.make_node("Add", ["x", "scale"], ["sum"]), *rms_norm("sum", "y"))
    fuse_norms(found.graph)
    fuse_residual_sums(found.graph)
    norm = next(node for node in found.graph if node.domain == "fastserve")
    assert not any(norm.inputs[2:])


def gated(activation: str, value: str = "u") -> list[Any]:
    return [
        helper.make_node("MatMul", ["x", "gate"], ["g"], name="layers.0.gate/node"),
        helper.make_node("MatMul", ["x", "up"], ["u"], name="layers.0.up/node"),
        helper.make_node(activation, ["g"], ["a"]),
        helper.make_node("Mul", ["g", "a"], ["silu"]),
        helper.make_node("Mul", ["silu", value], ["y"], name="layers.0.mlp/node_mul"),
    ]


def test_gates_and_values_come_from_one_product() -> None:
    gate, up = weight(8, 8), weight(8, 8)
    found = graph_of(*gated("Sigmoid"), gate=gate, up=up)
    fuse_gated_activations(found.graph)
    fused = found.graph.outputs[0].producer()
    assert fused is not None and (fused.op_type, fused.attributes["activation"].as_string()) == ("GatedActivation", "silu")
    both = Projection.behind(fused.inputs[0])
    assert both is not None
    np.testing.assert_array_equal(both.parts[0].matrix(), np.concatenate([gate, up], axis=1))


@pytest.mark.parametrize(("activation", "value"), [("Tanh", "u"), ("Sigmoid", "x")], ids=["tanh", "a value that is no product"])
def test_other_products_stay(activation: str, value: str) -> None:
    found = graph_of(*gated(activation, value), gate=weight(8, 8), up=weight(8, 8))
    before = result(found)
    fuse_gated_activations(found.graph)
    assert own(found) == []
    np.testing.assert_array_equal(result(found), before)


def test_heads_whose_query_key_and_value_lie_side_by_side_get_a_product_each() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="layers.0.qkv/node"),
        helper.make_node("Reshape", ["m", "shape"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["swapped"], perm=[1, 0, 2]),
        helper.make_node("Split", ["swapped"], ["q", "k"], axis=2, num_outputs=2),
        helper.make_node("Sub", ["q", "k"], ["d"]),
        helper.make_node("Transpose", ["d"], ["back"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["back", "flat"], ["y"]),
    ]
    found = graph_of(*nodes, w=weight(8, 16), shape=np.array([-1, 2, 8]), flat=np.array([-1, 8]))
    before = result(found)
    split_projections(found.graph)
    found.graph.sort()
    np.testing.assert_allclose(result(found), before, rtol=1e-5, atol=1e-5)
    assert next(node for node in found.graph if node.op_type == "Sub").inputs[0].producer().op_type == "Transpose"  # type: ignore


def test_a_projection_times_a_number_is_a_projection() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Mul", ["m", "number"], ["y"])]
    w = weight(8, 8)
    projection = Projection.behind(graph_of(*nodes, w=w).graph.outputs[0])
    assert projection is not None
    np.testing.assert_array_equal(projection.parts[0].matrix(), w * np.float32(1.5))


def test_sampled_rows_are_picked_without_swapping_axes() -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["batch"]),
        helper.make_node("Transpose", ["batch"], ["tokens"], perm=[1, 0, 2]),
        helper.make_node("Unsqueeze", ["sequence_rows", "last"], ["rows"]),
        helper.make_node("GatherND", ["tokens", "rows"], ["picked"]),
        helper.make_node("Transpose", ["picked"], ["back"], perm=[1, 0, 2]),
        helper.make_node("Squeeze", ["back", "first"], ["y"]),
    ]
    found = model([EMBED, *nodes], ("y", ["num_seqs", 8]), **CONSTANTS)
    before = result(found)
    pick_rows_directly(found.graph)
    np.testing.assert_array_equal(result(found), before)
    squeeze = found.graph.outputs[0].producer()
    assert squeeze is not None and squeeze.inputs[0] is not None
    gather = squeeze.inputs[0].producer()
    assert gather is not None and gather.op_type == "Gather"
