"""Products are cut and joined, and rotations by positions become tables, where that changes no result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.export.encoders.packed_attention import ATTENTION
from fastserve.export.encoders.rewrites import drop_reshapes, fuse_query_key_value
from fastserve.export.encoders.rotary_nodes import OPERATOR as ROTARY
from fastserve.export.encoders.rotary_nodes import use_rotary_nodes
from fastserve.export.rewrites.projections import split_projections
from tests.unit.small_graphs import attention, model, operators, rewritten, weight

# --- projections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [True, False])
def test_a_projection_that_is_cut_up_becomes_several(biased: bool) -> None:
    cut = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        *([helper.make_node("Add", ["m", "b"], ["p"])] if biased else []),
        helper.make_node("Split", ["p" if biased else "m"], ["gate", "up"], axis=-1, num_outputs=2),
        helper.make_node("Mul", ["gate", "up"], ["logits"]),
    ]
    constants = {"table": weight(9, 8), "w": weight(8, 32), **({"b": weight(32)} if biased else {})}
    changed = rewritten(model(cut, ("logits", ["num_tokens", 16]), **constants), split_projections)
    assert operators(changed).count("MatMul") == 2 and "Split" not in operators(changed)


def test_blocks_that_are_picked_from_a_projection_become_projections() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "blocks"], ["q"]),
    ]
    for index in range(3):
        starts, ends = f"start_{index}", f"end_{index}"
        nodes += [
            helper.make_node("Slice", ["q", starts, ends, "axis"], [f"s_{index}"]),
            helper.make_node("Squeeze", [f"s_{index}", "axis"], [f"v_{index}"]),
        ]
    nodes += [
        helper.make_node("Mul", ["v_0", "v_1"], ["a"]),
        helper.make_node("Add", ["a", "v_2"], ["h"]),
        helper.make_node("Reshape", ["h", "flat"], ["logits"]),
    ]
    constants = {"table": weight(9, 8), "w": weight(8, 24), "blocks": np.array([-1, 3, 2, 4]), "flat": np.array([-1, 8])}
    bounds = {f"start_{i}": np.array([i]) for i in range(3)} | {f"end_{i}": np.array([i + 1]) for i in range(2)}
    bounds |= {"end_2": np.array([np.iinfo(np.int64).max]), "axis": np.array([1])}
    changed = rewritten(model(nodes, ("logits", ["num_tokens", 8]), **constants, **bounds), split_projections)
    assert operators(changed).count("MatMul") == 3 and "Slice" not in operators(changed)


def projected(biases: Sequence[bool], rows: Sequence[str] = ("x", "x", "x")) -> ir.Model:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0), helper.make_node("Tanh", ["x"], ["z"])]
    constants = {"table": weight(9, 8), "heads": np.array([-1, 2, 4]), "flat": np.array([-1, 8])}
    for index, (biased, source) in enumerate(zip(biases, rows, strict=True)):
        nodes.append(helper.make_node("MatMul", [source, f"w_{index}"], [f"m_{index}"]))
        if biased:
            nodes.append(helper.make_node("Add", [f"m_{index}", f"b_{index}"], [f"p_{index}"]))
        nodes.append(helper.make_node("Reshape", [f"p_{index}" if biased else f"m_{index}", "heads"], [f"h_{index}"]))
        nodes.append(helper.make_node("Reshape", [f"h_{index}", "flat"], [f"r_{index}"]))
        constants |= {f"w_{index}": weight(8, 8), **({f"b_{index}": weight(8)} if biased else {})}
    return attention(nodes, ["r_0", "r_1", "r_2"], **constants)


@pytest.mark.parametrize("biased", [True, False])
def test_query_key_and_value_of_the_same_rows_are_one_product(biased: bool) -> None:
    graph_model = projected([biased] * 3)
    weights = [graph_model.graph.initializers[f"w_{index}"].const_value for index in range(3)]
    drop_reshapes(graph_model.graph)
    fuse_query_key_value(graph_model.graph)
    RemoveUnusedNodesPass()(graph_model)
    (node,) = [node for node in graph_model.graph if node.op_type == ATTENTION]
    (product,) = [node for node in graph_model.graph if node.op_type == "MatMul"]
    assert node.inputs[1] is None and node.inputs[2] is None
    assert product.inputs[1] is not None and product.inputs[1].const_value is not None
    np.testing.assert_array_equal(
        product.inputs[1].const_value.numpy(), np.concatenate([each.numpy() for each in weights if each is not None], axis=1)
    )
    assert operators(graph_model).count("Add") == int(biased)


@pytest.mark.parametrize(
    ("biases", "rows"), [((True, True, False), ("x", "x", "x")), ((True, True, True), ("x", "x", "z"))], ids=["bias", "rows"]
)
def test_projections_that_differ_in_kind_stay_apart(biases: Sequence[bool], rows: Sequence[str]) -> None:
    graph_model = projected(biases, rows)
    fuse_query_key_value(graph_model.graph)
    assert operators(graph_model).count("MatMul") == 3


# --- rotary positions -------------------------------------------------------------------------------------------------


def rotated(second_angle: str = "cos", angles_from: str = "position_ids") -> ir.Model:
    """Queries rotated by hand, as keys and values too."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0),
        helper.make_node("Reshape", ["x", "heads"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Cast", [angles_from], ["p"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["p", "last"], ["c"]),
        helper.make_node("Mul", ["c", "frequencies"], ["f"]),
        helper.make_node("Mul", ["c", "others"], ["o"]),
        helper.make_node("Concat", ["f", "f" if second_angle == "cos" else "o"], ["both"], axis=-1),
        helper.make_node("Cos", ["both"], ["cos_flat"]),
        helper.make_node("Sin", ["both"], ["sin_flat"]),
        helper.make_node("Unsqueeze", ["cos_flat", "zero"], ["cosines"]),
        helper.make_node("Unsqueeze", ["sin_flat", "zero"], ["sines"]),
        helper.make_node("Slice", ["t", "zero", "two", "axis_2"], ["first"]),
        helper.make_node("Slice", ["t", "two", "four", "axis_2"], ["second"]),
        helper.make_node("Neg", ["second"], ["negated"]),
        helper.make_node("Concat", ["negated", "first"], ["turned"], axis=-1),
        helper.make_node("Mul", ["t", "cosines"], ["direct"]),
        helper.make_node("Mul", ["turned", "sines"], ["crossed"]),
        helper.make_node("Add", ["direct", "crossed"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["back"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["back", "flat"], ["r"]),
    ]
    constants = {
        "table": weight(9, 8),
        "heads": np.array([-1, 2, 4]),
        "flat": np.array([-1, 8]),
        "frequencies": np.array([1.0, 0.1], np.float32),
        "others": np.array([2.0, 0.2], np.float32),
        "zero": np.array([0]),
        "last": np.array([-1]),
        "two": np.array([2]),
        "four": np.array([4]),
        "axis_2": np.array([2]),
    }
    return attention(nodes, ["r", "r", "x"], **constants)


def test_a_rotation_that_is_spelled_out_becomes_one_node_with_tables_of_every_position() -> None:
    graph_model = rotated()
    use_rotary_nodes(graph_model.graph, 50)
    RemoveUnusedNodesPass()(graph_model)
    (rotary,) = [node for node in graph_model.graph if node.op_type == ROTARY]
    assert not {"Cos", "Sin", "Neg", "Concat", "Transpose"} & set(operators(graph_model))
    assert rotary.attributes["num_heads"].as_int() == 2
    angles = np.arange(50, dtype=np.float32)[:, None] * np.array([1.0, 0.1], np.float32)
    tables = [value.const_value for value in rotary.inputs[2:] if value is not None]
    for table, wanted in zip(tables, (np.cos(angles), np.sin(angles)), strict=True):
        assert table is not None
        np.testing.assert_allclose(table.numpy(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [{"second_angle": "other"}, {"angles_from": "input_ids"}], ids=["halves", "tokens"])
def test_what_is_no_rotation_by_positions_stays_as_it_is(changes: dict[str, str]) -> None:
    graph_model = rotated(**changes)
    use_rotary_nodes(graph_model.graph, 50)
    assert ROTARY not in operators(graph_model)
