"""Small ONNX graphs with the inputs of an encoder, made by hand and evaluated without ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.export.encoders.packed_attention import ATTENTION

Array = np.ndarray[Any, np.dtype[Any]]

RANDOM = np.random.default_rng(0)
FEEDS = {
    "input_ids": np.array([3, 1, 4, 1, 5]),
    "position_ids": np.array([0, 1, 0, 1, 2]),
    "sequence_rows": np.array([0, 2]),
}


def weight(*shape: int) -> Array:
    return RANDOM.normal(0.0, 1.0, shape).astype(np.float32)


def model(nodes: Sequence[onnx.NodeProto], output: tuple[str, list[Any]], **constants: Array) -> ir.Model:
    """A graph over the inputs of an encoder; shapes are inferred. ``output``: name and shape."""
    name, shape = output
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["num_tokens"]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["num_tokens"]),
        helper.make_tensor_value_info("sequence_rows", TensorProto.INT64, ["num_seqs"]),
    ]
    graph = helper.make_graph(
        list(nodes),
        "encoder",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("fastserve", 1)], ir_version=10
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def result(graph_model: ir.Model) -> Array:
    proto = ir.to_proto(graph_model)
    used = {value.name for value in proto.graph.input}
    (output,) = ReferenceEvaluator(proto).run(None, {name: array for name, array in FEEDS.items() if name in used})
    return np.asarray(output)


def operators(graph_model: ir.Model) -> list[str]:
    return [node.op_type for node in graph_model.graph]


def rewritten(graph_model: ir.Model, rewrite: Any, *arguments: Any) -> ir.Model:
    """``graph_model`` after ``rewrite``, which must not have changed what it computes."""
    before = result(graph_model)
    rewrite(graph_model.graph, *arguments)
    RemoveUnusedNodesPass()(graph_model)
    np.testing.assert_allclose(result(graph_model), before, rtol=1e-5, atol=1e-5)
    return graph_model


def attention(nodes: Sequence[onnx.NodeProto], operands: list[str], **constants: Array) -> ir.Model:
    """A graph that ends in attention over ``operands``; it cannot be evaluated here."""
    graph_model = model(nodes, (operands[0], ["num_tokens", 8]), **constants)
    cumulative = graph_model.graph.inputs[2]  # any vector will do
    values = {value.name: value for node in graph_model.graph for value in node.outputs}
    node = ir.Node("fastserve", ATTENTION, [*(values[name] for name in operands), cumulative], name="attention")
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(["num_tokens", 8]), ir.TensorType(ir.DataType.FLOAT)
    graph_model.graph.append(node)
    graph_model.graph.outputs[:] = [node.outputs[0]]
    return graph_model
