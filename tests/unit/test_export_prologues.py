"""Which norms and gated activations become part of the product that reads them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from fastserve.export.rewrites.prologues import fuse_prologues
from tests.unit.small_graphs import operators


def node(operator: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, outputs[0], domain="fastserve", **attributes)


def norm(x: str, y: str, skip: str = "", total: str = "") -> onnx.NodeProto:
    inputs = [x, "w", "", skip] if skip else [x, "w"]
    return node("RowNorm", inputs, [y, *([total] if total else [])], epsilon=1e-6, centred=0)


def product(x: str, y: str, *bias: str) -> onnx.NodeProto:
    return node("QuantizedMatMul", [x, "packed", "scale", *bias], [y], k=8, n=8)


def fused(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    """The graph of ``nodes``, from x and skip [num_tokens, 8], after the rewrite."""

    def rows(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["num_tokens", 8])

    constants = {"w": np.ones(8, np.float32), "b": np.ones(8, np.float32), "scale": np.ones(8, np.float32)}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    tensors.append(numpy_helper.from_array(np.zeros((1, 3, 64), np.int8), "packed"))
    graph = helper.make_graph(list(nodes), "decoder", [rows("x"), rows("skip")], [rows(name) for name in outputs], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("fastserve", 1)]
    changed = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    fuse_prologues(changed.graph)
    return changed


def names(values: object) -> list[str | None]:
    return [None if value is None else value.name for value in values]  # type: ignore[attr-defined]


def test_a_norm_that_one_product_reads_becomes_its_prologue() -> None:
    (found,) = fused(norm("x", "n"), product("n", "y")).graph
    assert names(found.inputs) == ["x", "packed", "scale", None, "w"]
    assert {name: attribute.value for name, attribute in found.attributes.items()} == {
        "k": 8, "n": 8, "prologue": "norm", "epsilon": np.float32(1e-6), "centred": 0,
    }  # fmt: skip
    assert names(found.outputs) == ["y"]


def test_the_product_makes_the_residual_sum_for_those_that_read_it() -> None:
    changed = fused(
        norm("x", "n", "skip", "total"), helper.make_node("Neg", ["total"], ["z"]), product("n", "y", "b"), outputs=("y", "z")
    )
    assert operators(changed) == ["QuantizedMatMul", "Neg"]
    first, second = changed.graph
    assert names(first.inputs) == ["x", "packed", "scale", "b", "w", None, "skip"]
    assert second.inputs[0] is first.outputs[1]


def test_a_gated_activation_becomes_the_prologue_of_its_product() -> None:
    (found,) = fused(node("GatedActivation", ["x"], ["g"], activation="gelu_tanh"), product("g", "y")).graph
    assert names(found.inputs) == ["x", "packed", "scale"]
    assert found.attributes["prologue"].as_string() == "gelu_tanh"


def test_a_norm_that_others_read_as_well_stays() -> None:
    two = fused(norm("x", "n"), product("n", "y"), product("n", "z"), outputs=("y", "z"))
    assert operators(two) == ["RowNorm", "QuantizedMatMul", "QuantizedMatMul"]
    given_out = fused(norm("x", "n"), product("n", "y"), outputs=("y", "n"))
    assert operators(given_out) == ["RowNorm", "QuantizedMatMul"]


def test_rows_of_other_operators_stay() -> None:
    assert operators(fused(helper.make_node("Neg", ["x"], ["n"]), product("n", "y"))) == ["Neg", "QuantizedMatMul"]
    assert operators(fused(product("x", "y"))) == ["QuantizedMatMul"]
