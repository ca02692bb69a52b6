"""Products with constant weights become products with weights in the order a kernel reads them: finding them, replacing them.

What the new operators are and how they pack a weight, ``quantization.py`` and ``prepacking.py`` say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites.graph_edits import new_node, replace


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """``product`` and ``lookup``: operators of ours; without a ``lookup``, tables stay as they are. ``pack``: makes what they
    read of a weight, values of the graph, given the weight and whether it is stored [n, k]. ``suffix``: of the names of products.
    ``attributes``: of products, beside k and n."""

    product: str
    lookup: str | None
    pack: Callable[[ir.Graph, ir.Value, bool], tuple[ir.Value, ...]]
    suffix: str
    attributes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def constant_products(graph: ir.Graph) -> list[ir.Node]:
    """The products with a constant matrix on the right: MatMul, or Gemm of two rows' matrices."""
    return [node for node in graph if is_constant_product(node)]


def is_constant_product(node: ir.Node) -> bool:
    """Whether ``node`` multiplies rows by a constant matrix, and does nothing else that a packed product could not do."""
    weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    return settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)


def is_transposed(product: ir.Node) -> bool:
    """Whether the weight of a product is stored [n, k]."""
    return "transB" in product.attributes and product.attributes["transB"].as_int() == 1


def is_lookup(node: ir.Node, place: int) -> bool:
    """Whether ``node`` reads, as its input ``place``, a table of which it picks rows."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return node.op_type == "Gather" and place == 0 and axis == 0


def is_looked_up(product: ir.Node) -> bool:
    """Whether the weight of a product is a table of which something picks rows, too."""
    weight = product.inputs[1]
    return weight is not None and any(is_lookup(reader, place) for reader, place in weight.uses())


def replace_products(graph: ir.Graph, products: Iterable[ir.Node], packing: Packing) -> None:
    """Replace ``products``, the biases added to them, and lookups in a table that is one of their weights (tied embeddings).

    A weight that nothing else reads is dropped as soon as it is packed, so that a model is never in memory twice.
    """
    packed: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for product in products:
        weight = product.inputs[1]
        assert weight is not None
        if weight not in packed:
            packed[weight] = packing.pack(graph, weight, is_transposed(product))
        if is_transposed(product) and packing.lookup is not None:
            _replace_lookups(graph, weight, packed[weight], packing.lookup)
        _replace_product(graph, product, packed[weight], packing)
        if not weight.uses() and weight.name is not None and weight.name in graph.initializers:
            del graph.initializers[weight.name]
            weight.const_value = None
    _put_first(graph, [values[0] for values in packed.values()])


def sizes(product: ir.Node) -> tuple[int, int]:
    """(k, n)"""
    weight = product.inputs[1]
    assert weight is not None and weight.const_value is not None
    rows, columns = (int(size) for size in weight.const_value.shape.numpy())
    return (columns, rows) if is_transposed(product) else (rows, columns)


def _replace_product(graph: ir.Graph, product: ir.Node, packed: tuple[ir.Value, ...], packing: Packing) -> None:
    k, n = sizes(product)
    last, bias = _with_bias(product, n)
    operands = [product.inputs[0], *packed, *([bias] if bias is not None else [])]
    attributes = {"k": k, "n": n, **packing.attributes}
    node = new_node(graph, product, (DOMAIN, packing.product), operands, [last.outputs[0]], attributes)
    node.name = f"{product.name}.{packing.suffix}"
    replace(last.outputs[0], node.outputs[0])
    for old in dict.fromkeys((last, product)):
        graph.remove(old, safe=True)


def _replace_lookups(graph: ir.Graph, weight: ir.Value, packed: tuple[ir.Value, ...], operator: str) -> None:
    """Where rows of a head's weight [n, k] are looked up, take them from the packed one."""
    for node, place in list(weight.uses()):
        if is_lookup(node, place) and weight.shape is not None:
            n, k = weight.shape.numpy()
            operands = [node.inputs[1], *packed]
            lookup = new_node(graph, node, (DOMAIN, operator), operands, [node.outputs[0]], {"k": k, "n": n})
            replace(node.outputs[0], lookup.outputs[0])
            graph.remove(node, safe=True)


def _with_bias(product: ir.Node, n: int) -> tuple[ir.Node, ir.Value | None]:
    """The last node of the product and, if a constant vector [n] is added to it and nothing else reads it, that."""
    if len(product.inputs) > 2 and product.inputs[2] is not None:
        return product, product.inputs[2]
    readers = [node for node, _ in product.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add" or product.outputs[0].is_graph_output():
        return product, None
    other = next((value for value in readers[0].inputs if value is not product.outputs[0]), None)
    is_bias = other is not None and other.const_value is not None and tuple(other.const_value.shape.numpy()) == (n,)
    return (readers[0], other) if is_bias else (product, None)


def _put_first(graph: ir.Graph, weights: list[ir.Value]) -> None:
    """Their sizes are multiples of 64 bytes: in front of everything else in the file, each begins at one, where it is read
    fastest."""
    others = [value for value in graph.initializers.values() if value not in weights]
    graph.initializers.clear()
    for value in (*weights, *others):
        graph.register_initializer(value)
