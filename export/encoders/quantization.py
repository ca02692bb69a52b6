"""int8: the products of an encoder's layers become products of int8 weights and activations quantised row by row.

Embeddings, the head and the normalisations stay as they are. A row's scale is its own, so a sequence still does not depend on
its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import DOMAIN
from fastserve.export.encoders.batch_axis import constant, replace
from fastserve.worker.kernels.quantized_weight import pack_weight

OPERATOR = "QuantizedMatMul"

_IN_A_LAYER = re.compile(r"\.\d+\.[^/]*/")
"""In the name of a node: its module is in one of a list of modules, which is what layers are, and heads are not."""


def quantize_layers(graph: ir.Graph) -> None:
    """Replace every product with a constant weight in the encoder's layers, and the bias that is added to it.

    Raises UnsupportedModel when there is none, or a weight is NaN or infinite.
    """
    packed: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for product in list(_products(graph)):
        weight = product.inputs[1]
        assert weight is not None
        if weight not in packed:
            packed[weight] = _pack(graph, weight)
        _replace_product(graph, product, packed[weight])
    if not packed:
        raise UnsupportedModel("its layers have no product with constant weights that int8 could replace")
    for weight in packed:
        if not weight.uses() and weight.name is not None:
            del graph.initializers[weight.name]
    _put_first(graph, [value for value, _ in packed.values()])


def _products(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.const_value is not None and _IN_A_LAYER.search(node.name or ""):
            yield node


def _pack(graph: ir.Graph, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(packed int8 weight, scale of each output channel)."""
    assert weight.const_value is not None
    packed, scale = pack_weight(weight.const_value.numpy())
    return (
        constant(graph, f"{weight.name}.packed", ir.tensor(packed)),
        constant(graph, f"{weight.name}.scale", ir.tensor(scale)),
    )


def _replace_product(graph: ir.Graph, product: ir.Node, packed: tuple[ir.Value, ir.Value]) -> None:
    rows, weight = product.inputs
    assert weight is not None and weight.shape is not None
    k, n = weight.shape.numpy()
    last, bias = _with_bias(product)
    operands = [rows, *packed, *([bias] if bias is not None else [])]
    attributes = [ir.AttrInt64("k", k), ir.AttrInt64("n", n)]
    node = ir.Node(DOMAIN, OPERATOR, operands, attributes, name=f"{product.name}.int8")
    node.outputs[0].type, node.outputs[0].shape = last.outputs[0].type, last.outputs[0].shape
    graph.insert_before(product, [node])
    replace(last.outputs[0], node.outputs[0])
    for old in dict.fromkeys((last, product)):
        graph.remove(old, safe=True)


def _with_bias(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The last node of the product and, if a constant vector is added to it and nothing else reads it, that."""
    readers = [node for node, _ in product.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add" or product.outputs[0].is_graph_output():
        return product, None
    other = next((value for value in readers[0].inputs if value is not product.outputs[0]), None)
    is_bias = other is not None and other.const_value is not None and len(other.const_value.shape) == 1
    return (readers[0], other) if is_bias else (product, None)


def _put_first(graph: ir.Graph, weights: list[ir.Value]) -> None:
    """Their sizes are multiples of 64 bytes: in front of everything else in the file, each begins at one, where it is read
    fastest."""
    others = [value for value in graph.initializers.values() if value not in weights]
    graph.initializers.clear()
    for value in (*weights, *others):
        graph.register_initializer(value)
