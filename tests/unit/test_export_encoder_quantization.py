"""int8 takes the products of the layers and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from fastserve.errors import UnsupportedModel
from fastserve.export.rewrites.quantization import OPERATOR, quantize_layers
from fastserve.worker.kernels.quantized_weight import pack_weight
from tests.unit.small_graphs import Array, model, weight

LAYER, HEAD = "model.bert.encoder.layer.0.output.dense", "model.classifier"


def graph_model(first: Array, *, layer: str = LAYER) -> ir.Model:
    """An embedding, a product with a bias and one without in a layer, and a head."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], axis=0),
        helper.make_node("MatMul", ["x", "w_0"], ["m_0"], name=f"{layer}/node_1"),
        helper.make_node("Add", ["b_0", "m_0"], ["p_0"], name=f"{layer}/node_2"),
        helper.make_node("Add", ["p_0", "x"], ["r_0"], name=f"{layer}/node_3"),
        helper.make_node("MatMul", ["r_0", "w_1"], ["m_1"], name=f"{layer}/node_4"),
        helper.make_node("Add", ["m_1", "r_0"], ["r_1"], name=f"{layer}/node_5"),
        helper.make_node("MatMul", ["r_1", "w_2"], ["m_2"], name=f"{HEAD}/node_6"),
        helper.make_node("Add", ["m_2", "b_2"], ["logits"], name=f"{HEAD}/node_7"),
    ]
    constants = {
        "table": weight(9, 8),
        "w_0": first,
        "b_0": weight(8),
        "w_1": weight(8, 8),
        "w_2": weight(8, 3),
        "b_2": weight(3),
    }
    return model(nodes, ("logits", ["num_tokens", 3]), **constants)


def test_products_of_layers_are_replaced_with_their_biases() -> None:
    first = weight(8, 8)
    changed = graph_model(first)
    quantize_layers(changed.graph)
    products = [node for node in changed.graph if node.op_type == OPERATOR]
    assert [len(node.inputs) for node in products] == [4, 3]  # the residual of the second is no bias
    assert products[0].inputs[3] is changed.graph.initializers["b_0"]
    assert [(node.attributes["k"].as_int(), node.attributes["n"].as_int()) for node in products] == [(8, 8), (8, 8)]
    for value, wanted in zip(products[0].inputs[1:3], pack_weight(first), strict=True):
        assert value is not None and value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), wanted)


def test_the_head_and_the_embedding_stay_as_they_are() -> None:
    changed = graph_model(weight(8, 8))
    quantize_layers(changed.graph)
    assert [node.op_type for node in changed.graph] == ["Gather", OPERATOR, "Add", OPERATOR, "Add", "MatMul", "Add"]
    assert {"table", "w_2", "b_2"} <= set(changed.graph.initializers)
    assert not {"w_0", "w_1"} & set(changed.graph.initializers)
    assert [value.name for value in changed.graph.outputs] == ["logits"]


def test_packed_weights_come_first_in_the_file_where_they_are_aligned() -> None:
    changed = graph_model(weight(8, 8))
    quantize_layers(changed.graph)
    kinds = [value.dtype for value in changed.graph.initializers.values()]
    assert kinds[:2] == [ir.DataType.INT8] * 2 and ir.DataType.INT8 not in kinds[2:]
    packed = list(changed.graph.initializers.values())[:2]
    assert all(value.const_value is not None and value.const_value.nbytes % 64 == 0 for value in packed)


def test_a_weight_that_layers_share_is_packed_once() -> None:
    shared = graph_model(weight(8, 8))
    second = shared.graph.initializers["w_1"]
    second.replace_all_uses_with(shared.graph.initializers["w_0"])
    quantize_layers(shared.graph)
    assert sum(value.dtype == ir.DataType.INT8 for value in shared.graph.initializers.values()) == 1


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no product"):
        quantize_layers(graph_model(weight(8, 8), layer="model.dense").graph)


def test_weights_that_are_no_numbers_are_refused() -> None:
    broken = weight(8, 8)
    broken[3, 5] = np.nan
    with pytest.raises(UnsupportedModel, match="channel 5"):
        quantize_layers(graph_model(broken).graph)
