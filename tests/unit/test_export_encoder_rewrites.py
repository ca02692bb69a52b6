"""Every rewrite of an encoder's graph leaves its results alone: small graphs, evaluated before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from fastserve.export.encoders.rewrites import share_equal_weights
from fastserve.export.rewrites.batch_axis import drop_batch_axis
from fastserve.export.rewrites.early_gather import gather_early
from tests.unit.small_graphs import Array, model, operators, rewritten, weight

# --- the batch axis ---------------------------------------------------------------------------------------------------

ZERO = np.array([0])
EMBEDDED = [
    helper.make_node("Unsqueeze", ["input_ids", "zero"], ["ids"]),
    helper.make_node("Gather", ["table", "ids"], ["x"], axis=0),  # [1, num_tokens, 8]
]


def of_source(*nodes: onnx.NodeProto, **constants: Array) -> ir.Model:
    """``nodes`` make "y" [1, num_tokens, 8] from "x", as a source model does, and the batch is taken out at the end."""
    last = helper.make_node("Gather", ["y", "first"], ["logits"], axis=0)
    constants = {"table": weight(9, 8), "zero": ZERO, "first": np.array(0), **constants}
    return model([*EMBEDDED, *nodes, last], ("logits", ["num_tokens", 8]), **constants)


def ranks(graph_model: ir.Model) -> set[int]:
    return {len(value.shape) for node in graph_model.graph for value in node.outputs if value.shape is not None}


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])], {"w": (8, 8), "b": (8,)}),
        ([helper.make_node("LayerNormalization", ["x", "b", "b"], ["y"], axis=2)], {"b": (8,)}),
        ([helper.make_node("Add", ["x", "one_row"], ["y"])], {"one_row": (1, 1, 8)}),
        (
            [
                helper.make_node("Split", ["x"], ["left", "right"], axis=2, num_outputs=2),
                helper.make_node("Concat", ["right", "left"], ["y"], axis=-1),
            ],
            {},
        ),
    ],
    ids=["product", "norm", "constant with a batch axis", "halves"],
)
def test_what_works_on_rows_works_without_the_batch_axis(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    weights = {name: weight(*shape) for name, shape in constants.items()}
    assert ranks(rewritten(of_source(*nodes, **weights), drop_batch_axis)) == {2}


def test_heads_are_cut_and_swapped_without_the_batch_axis() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "heads"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Slice", ["t", "zero", "two", "axis_3"], ["s"]),
        helper.make_node("Concat", ["s", "s"], ["c"], axis=-1),
        helper.make_node("Transpose", ["c"], ["u"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["u", "flat"], ["y"]),
    ]
    shapes = {"heads": np.array([1, -1, 2, 4]), "flat": np.array([1, -1, 8]), "two": np.array([2]), "axis_3": np.array([3])}
    changed = rewritten(of_source(*nodes, **shapes), drop_batch_axis)
    assert ranks(changed) == {2, 3}
    assert "Unsqueeze" not in operators(changed)


def test_an_operation_that_needs_the_batch_axis_gets_it_back() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["r", "zero"], ["y"], keepdims=1),  # over the batch, of all things
    ]
    changed = rewritten(of_source(*nodes), drop_batch_axis)
    assert operators(changed).count("Unsqueeze") == 1


def test_the_output_keeps_its_name() -> None:
    changed = rewritten(of_source(helper.make_node("Tanh", ["x"], ["y"])), drop_batch_axis)
    assert [value.name for value in changed.graph.outputs] == ["logits"]
    assert operators(changed) == ["Gather", "Tanh"]


# --- rows that nobody reads -------------------------------------------------------------------------------------------


def feed_forward(*more: onnx.NodeProto) -> ir.Model:
    """A residual block, of which the first row of each sequence is read."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0),
        helper.make_node("MatMul", ["x", "up"], ["u"]),
        helper.make_node("Split", ["u"], ["a", "b"], axis=-1, num_outputs=2),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("Mul", ["t", "b"], ["g"]),
        helper.make_node("MatMul", ["g", "down"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["r"]),
        helper.make_node("LayerNormalization", ["r", "scale"], ["n"], axis=-1),
        *more,
        helper.make_node("Gather", ["n", "sequence_rows"], ["embeddings"], axis=0),
    ]
    constants = {"table": weight(9, 8), "up": weight(8, 12), "down": weight(6, 8), "scale": weight(8)}
    return model(nodes, ("embeddings", ["num_seqs", 8]), **constants)


def test_rows_are_picked_before_what_works_on_each_row_by_itself() -> None:
    changed = rewritten(feed_forward(), gather_early)
    products = [node for node in changed.graph if node.op_type == "MatMul"]
    assert [str(value.shape) for node in products for value in node.inputs[:1]] == ["[num_seqs,8]", "[num_seqs,6]"]
    assert operators(changed).count("Gather") == 2  # the embedding, and one for all that read its rows


def test_a_value_that_something_else_reads_is_computed_whole() -> None:
    whole = feed_forward(helper.make_node("ReduceMax", ["n"], ["unused"]))
    whole.graph.outputs.append(next(node.outputs[0] for node in whole.graph if node.op_type == "ReduceMax"))
    gather_early(whole.graph)
    assert [str(node.inputs[0].shape) for node in whole.graph if node.op_type == "MatMul" and node.inputs[0]] == [
        "[num_tokens,8]",
        "[num_tokens,6]",
    ]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_equal_weights_are_stored_once_but_a_number_is_no_vector() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "same"], ["b"]),
        helper.make_node("Unsqueeze", ["b", "zero"], ["c"]),
        helper.make_node("Gather", ["c", "number"], ["logits"], axis=0),
    ]
    square = weight(8, 8)
    constants = {"table": weight(9, 8), "w": square, "same": square.copy(), "zero": ZERO, "number": np.array(0)}
    changed = rewritten(model(nodes, ("logits", ["num_tokens", 8]), **constants), share_equal_weights)
    assert set(changed.graph.initializers) == {"table", "w", "zero", "number"}
