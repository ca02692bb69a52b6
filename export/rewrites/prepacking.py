"""Float products whose weights are stored in the order our kernel reads them.

ONNX Runtime brings the weights of its own products into an order when it loads a graph, which takes time and a copy in every
process. These are mapped as they lie in the file, and read ahead of the arithmetic.
"""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.rewrites.graph_edits import constant
from fastserve.export.rewrites.packed_products import (
    Packing,
    constant_products,
    is_constant_product,
    is_lookup,
    is_transposed,
    replace_products,
    sizes,
)
from fastserve.worker.kernels.prepacked_weight import PANEL_COLUMNS, FloatArray, prepack_weight, prepacked_shape

OPERATOR, EMBEDDING = "PrepackedMatMul", "PrepackedGather"


def prepack_products(graph: ir.Graph) -> None:
    """Replace the products with a constant weight of at least a panel's columns, the biases added to them, and lookups in a tied
    embedding. Others, and weights that something else reads as well, stay as they are: nothing is stored twice."""
    replace_products(graph, [product for product in constant_products(graph) if _can_be_packed(product)], _FLOAT)


def _can_be_packed(product: ir.Node) -> bool:
    weight = product.inputs[1]
    assert weight is not None
    return (
        weight.dtype == ir.DataType.FLOAT
        and sizes(product)[1] >= PANEL_COLUMNS
        and all(_reads_packed(node, place, transposed=is_transposed(product)) for node, place in weight.uses())
    )


def _reads_packed(node: ir.Node, place: int, *, transposed: bool) -> bool:
    """Whether what reads a weight could read it packed, for products that have it ``transposed`` or not."""
    if is_lookup(node, place):
        return transposed
    return place == 1 and is_constant_product(node) and is_transposed(node) == transposed


def _pack(graph: ir.Graph, weight: ir.Value, transposed: bool) -> tuple[ir.Value, ...]:
    """The packed weight, put together when it is written."""
    source, name = weight.const_value, f"{weight.name}.prepacked"
    assert source is not None

    def packed() -> ir.TensorProtocol:
        matrix: FloatArray = source.numpy()
        return ir.tensor(prepack_weight(matrix.T if transposed else matrix), name=name)

    rows, columns = source.shape.numpy()
    k, n = (columns, rows) if transposed else (rows, columns)
    return (constant(graph, name, ir.LazyTensor(packed, ir.DataType.FLOAT, ir.Shape(prepacked_shape(k, n)), name=name)),)


_FLOAT = Packing(OPERATOR, EMBEDDING, _pack, "prepacked")
