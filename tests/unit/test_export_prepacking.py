"""Which float products are stored as the kernel reads them, and what becomes of what else reads their weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from fastserve.export.description import reordered_bytes
from fastserve.export.rewrites.prepacking import EMBEDDING, OPERATOR, prepack_products
from fastserve.worker.kernels.prepacked_weight import prepack_weight
from tests.unit.small_graphs import model, operators, weight

EMBED = helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0)
HEAD = helper.make_node("Gemm", ["x", "table"], ["logits"], transB=1)


def graph_model(*nodes: onnx.NodeProto, columns: int = 40, **constants: object) -> ir.Model:
    given = {"table": weight(columns, 8), "w": weight(8, columns), "b": weight(columns)} | constants
    used = {name for node in nodes for name in node.input}
    return model(nodes, ("logits", ["num_tokens", columns]), **{name: array for name, array in given.items() if name in used})


def sizes(node: ir.Node) -> tuple[int, int]:
    return node.attributes["k"].as_int(), node.attributes["n"].as_int()


def constant_of(value: ir.Value | None) -> object:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def test_a_product_takes_its_packed_weight_and_its_bias_and_drops_the_matrix() -> None:
    matrix = weight(8, 40)
    product = helper.make_node("MatMul", ["x", "w"], ["m"])
    changed = graph_model(EMBED, product, helper.make_node("Add", ["m", "b"], ["logits"]), w=matrix)
    prepack_products(changed.graph)
    assert operators(changed) == ["Gather", OPERATOR]
    node = changed.graph[1]
    assert sizes(node) == (8, 40) and len(node.inputs) == 3
    assert node.inputs[2] is changed.graph.initializers["b"]
    np.testing.assert_array_equal(constant_of(node.inputs[1]), prepack_weight(matrix))
    assert "w" not in changed.graph.initializers
    assert [value.name for value in changed.graph.outputs] == ["logits"]


def test_of_what_is_packed_onnx_runtime_reorders_nothing_and_of_products_it_computes_all() -> None:
    changed = graph_model(
        EMBED,
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("MatMul", ["x", "narrow"], ["n"]),
        helper.make_node("Add", ["m", "b"], ["logits"]),
        narrow=weight(8, 4),
    )
    assert reordered_bytes(changed.graph) == (8 * 40 + 8 * 4) * 4, "a looked-up table and a bias are none"
    prepack_products(changed.graph)
    assert reordered_bytes(changed.graph) == 8 * 4 * 4


def test_a_tied_head_and_its_embedding_read_one_packed_weight() -> None:
    table = weight(40, 8)
    changed = graph_model(EMBED, HEAD, table=table)
    prepack_products(changed.graph)
    assert sorted(operators(changed)) == [EMBEDDING, OPERATOR]
    first, second = (node.inputs[1] for node in changed.graph)
    assert first is second and set(changed.graph.initializers) == {first.name if first is not None else None}
    np.testing.assert_array_equal(constant_of(first), prepack_weight(table.T))
    assert {sizes(node) for node in changed.graph} == {(8, 40)}


def test_the_packed_weights_come_first_in_the_file_where_they_are_aligned() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["m"])
    changed = graph_model(EMBED, product, helper.make_node("Add", ["m", "b"], ["logits"]))
    prepack_products(changed.graph)
    first = next(iter(changed.graph.initializers.values()))
    assert first is changed.graph[1].inputs[1]
    assert first.const_value is not None and first.const_value.nbytes % 64 == 0


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([EMBED, HEAD, helper.make_node("ReduceMax", ["table"], ["largest"])], id="something else reads it"),
        pytest.param([EMBED, helper.make_node("MatMul", ["x", "table"], ["logits"])], id="its rows are looked up"),
        pytest.param(
            [
                helper.make_node("Gather", ["rows", "input_ids"], ["x"], axis=0),
                helper.make_node("MatMul", ["x", "table"], ["y"]),
                helper.make_node("Gemm", ["y", "table"], ["logits"], transB=1),
            ],
            id="it is read in both directions",
        ),
    ],
)
def test_a_weight_that_would_be_stored_twice_stays_as_it_is(nodes: list[onnx.NodeProto]) -> None:
    same = graph_model(*nodes, table=weight(40, 40), rows=weight(9, 40))
    before = operators(same)
    prepack_products(same.graph)
    assert operators(same) == before


@pytest.mark.parametrize(("columns", "packed"), [(31, False), (32, True)])
def test_a_product_narrower_than_a_panel_stays_as_it_is(columns: int, packed: bool) -> None:
    changed = graph_model(EMBED, helper.make_node("MatMul", ["x", "w"], ["logits"]), columns=columns)
    prepack_products(changed.graph)
    assert (OPERATOR in operators(changed)) == packed
