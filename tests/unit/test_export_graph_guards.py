"""Operations that mix the tokens of a packed batch are found by their shapes; ordinary layers pass."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from fastserve.errors import UnsupportedModel
from fastserve.export.graph_guards import check_graph, mixes_tokens

Shape = tuple[int | str, ...]


def value(shape: Shape, name: str = "x") -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def node(op_type: str, inputs: list[Shape], output: Shape | None, **attributes: Any) -> ir.Node:
    made = ir.node(op_type, [value(shape) for shape in inputs], attributes)
    made.outputs[0].shape = None if output is None else ir.Shape(output)
    return made


@pytest.mark.parametrize(
    "leak",
    [
        node("CumSum", [("num_tokens", 8)], ("num_tokens", 8)),
        node("Conv", [(1, 8, "num_tokens")], (1, 8, "num_tokens")),
        node("Range", [], ("num_tokens",)),
        node("MatMul", [("num_tokens", 8), (8, "num_tokens")], ("num_tokens", "num_tokens")),
        node("ReduceMean", [(1, "num_tokens", 8)], (1, 1, 8)),
        node("MatMul", [(8, "num_tokens"), ("num_tokens", 8)], (8, 8)),
        node("Softmax", [(4, "num_tokens")], (4, "num_tokens"), axis=-1),
        node("Concat", [("num_tokens", 8), (1, 8)], ("num_tokens + 1", 8), axis=0),
        node("Slice", [(1, "num_tokens", 8)], (1, "num_tokens - 1", 8)),
        node("Gather", [("num_tokens", 8), ("num_tokens",)], ("num_tokens", 8), axis=0),
        node("Gather", [(1, "num_tokens", 8), ()], (1, 8), axis=1),
        node("GatherND", [("num_tokens", 8), ("num_seqs", 1)], ("num_seqs", 8)),
        node("Mul", [("num_tokens", 8), ("num_tokens", 8)], None),
    ],
    ids=lambda leak: leak.op_type,
)
def test_an_operation_along_the_token_axis_is_found(leak: ir.Node) -> None:
    assert mixes_tokens(leak)


@pytest.mark.parametrize(
    "harmless",
    [
        node("MatMul", [(1, "num_tokens", 8), (8, 16)], (1, "num_tokens", 16)),
        node("ReduceMean", [(1, "num_tokens", 8)], (1, "num_tokens", 1)),
        node("Softmax", [("num_tokens", 8)], ("num_tokens", 8), axis=-1),
        node("Concat", [("num_tokens", 8), ("num_tokens", 8)], ("num_tokens", 16), axis=-1),
        node("Slice", [(1, "num_tokens", 8)], (1, "num_tokens", 4)),
        node("Reshape", [(1, "num_tokens", 8)], ("8*num_tokens",)),
        node("Gather", [("num_tokens", 8), ("num_rows",)], ("num_rows", 8), axis=0),
        node("GatherND", [("num_tokens", 1, 8), ("num_rows", 1)], ("num_rows", 1, 8)),
        node("Gather", [(1, "num_tokens", 8), ()], ("num_tokens", 8), axis=0),
        node("Gather", [(269, 8), (1, "num_tokens")], (1, "num_tokens", 8), axis=0),
        node("Shape", [("num_tokens", 8)], (2,)),
        node("Add", [("num_rows", 8), (8,)], ("num_rows", 8)),
    ],
    ids=lambda harmless: harmless.op_type,
)
def test_an_operation_within_a_token_passes(harmless: ir.Node) -> None:
    assert mixes_tokens(harmless) is None


def attention_graph(extra: ir.Node | None = None, unused_input: bool = False) -> ir.Graph:
    inputs = [value(("num_tokens", 8), "query")] + ([value((2,), "past_seqlens")] if unused_input else [])
    attention = ir.Node("fastserve", "PagedAttention", inputs[:1])
    return ir.Graph(inputs, list(attention.outputs), nodes=[attention, *([extra] if extra else [])], name="decoder")


def test_a_graph_with_one_attention_node_for_each_layer_passes() -> None:
    check_graph(attention_graph(), 1)


@pytest.mark.parametrize(
    ("graph", "num_layers", "reason"),
    [
        (attention_graph(), 2, "1 PagedAttention nodes for 2"),
        (attention_graph(unused_input=True), 1, "past_seqlens"),
        (attention_graph(node("CumSum", [("num_tokens", 8)], ("num_tokens", 8))), 1, "CumSum"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused_by_name(graph: ir.Graph, num_layers: int, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        check_graph(graph, num_layers)
