"""int8: products with constant weights become products of int8 weights and activations quantised row by row.

A row's scale is its own, so a sequence still does not depend on its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites.graph_edits import constant, new_node, replace
from fastserve.worker.kernels.quantized_weight import FloatArray, pack_weight

OPERATOR, EMBEDDING = "QuantizedMatMul", "QuantizedGather"

_IN_A_LAYER = re.compile(r"\.\d+\.[^/]*/")
"""In the name of a node: its module is in one of a list of modules, which is what layers are, and heads are not."""


def quantize_layers(graph: ir.Graph) -> None:
    """Replace every product with a constant weight in the layers, and the bias that is added to it. Embeddings, the head and
    the normalisations stay as they are.

    Raises UnsupportedModel when there is none, or a weight is NaN or infinite.
    """
    quantize_products(graph, [node for node in constant_products(graph) if is_in_a_layer(node)])


def is_in_a_layer(node: ir.Node) -> bool:
    """Whether a module of the source that is in a list of modules computes ``node``."""
    return _IN_A_LAYER.search(node.name or "") is not None


def constant_products(graph: ir.Graph) -> list[ir.Node]:
    """The products with a constant matrix on the right: MatMul, or Gemm of two rows' matrices."""
    return [node for node in graph if is_constant_product(node)]


def is_constant_product(node: ir.Node) -> bool:
    """Whether ``node`` multiplies rows by a constant matrix, and does nothing else that int8 could not do."""
    weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    return settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)


def is_transposed(product: ir.Node) -> bool:
    """Whether the weight of a product is stored [n, k]."""
    return "transB" in product.attributes and product.attributes["transB"].as_int() == 1


def quantize_products(graph: ir.Graph, products: Iterable[ir.Node]) -> None:
    """Replace ``products``, the biases added to them, and lookups in a table that is one of their weights (tied embeddings).

    Weights are quantised one by one and dropped, so that a model is never in memory twice. Raises UnsupportedModel when there
    are no products, or a weight is NaN or infinite.
    """
    packed: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for product in products:
        weight = product.inputs[1]
        assert weight is not None
        if weight not in packed:
            packed[weight] = _pack(graph, weight, transposed=is_transposed(product))
        _replace_product(graph, product, packed[weight])
        _replace_lookups(graph, weight, packed[weight])
        if not weight.uses() and weight.name is not None and weight.name in graph.initializers:
            del graph.initializers[weight.name]
            weight.const_value = None
    if not packed:
        raise UnsupportedModel("its layers have no product with constant weights that int8 could replace")
    _put_first(graph, [value for value, _ in packed.values()])


def _pack(graph: ir.Graph, weight: ir.Value, *, transposed: bool) -> tuple[ir.Value, ir.Value]:
    """(packed int8 weight, scale of each output channel)."""
    assert weight.const_value is not None
    matrix: FloatArray = weight.const_value.numpy()
    packed, scale = pack_weight(matrix.T if transposed else matrix)
    return (
        constant(graph, f"{weight.name}.packed", ir.tensor(packed)),
        constant(graph, f"{weight.name}.scale", ir.tensor(scale)),
    )


def _replace_product(graph: ir.Graph, product: ir.Node, packed: tuple[ir.Value, ir.Value]) -> None:
    rows, weight = product.inputs[:2]
    assert weight is not None and weight.const_value is not None
    sizes = weight.const_value.shape.numpy()
    k, n = reversed(sizes) if is_transposed(product) else sizes
    last, bias = _with_bias(product)
    operands = [rows, *packed, *([bias] if bias is not None else [])]
    attributes = {"k": k, "n": n}
    node = new_node(graph, product, (DOMAIN, OPERATOR), operands, [last.outputs[0]], attributes)
    node.name = f"{product.name}.int8"
    replace(last.outputs[0], node.outputs[0])
    for old in dict.fromkeys((last, product)):
        graph.remove(old, safe=True)


def _replace_lookups(graph: ir.Graph, weight: ir.Value, packed: tuple[ir.Value, ir.Value]) -> None:
    """Where rows of a head's weight [n, k] are looked up, take them from the packed one."""
    for node, place in list(weight.uses()):
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if node.op_type != "Gather" or place != 0 or axis != 0 or weight.shape is None:
            continue
        n, k = weight.shape.numpy()
        operands = [node.inputs[1], *packed]
        lookup = new_node(graph, node, (DOMAIN, EMBEDDING), operands, [node.outputs[0]], {"k": k, "n": n})
        replace(node.outputs[0], lookup.outputs[0])
        graph.remove(node, safe=True)


def _with_bias(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The last node of the product and, if a constant vector is added to it and nothing else reads it, that."""
    if len(product.inputs) > 2 and product.inputs[2] is not None:
        return product, product.inputs[2]
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
