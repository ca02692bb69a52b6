"""int8: products with constant weights become products of int8 weights and activations quantised row by row.

A row's scale is its own, so a sequence still does not depend on its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from fastserve.errors import UnsupportedModel
from fastserve.export.rewrites.graph_edits import constant
from fastserve.export.rewrites.packed_products import Packing, constant_products, replace_products
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


def quantize_products(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    """Replace ``products``, the biases added to them, and lookups in a table that is one of their weights (tied embeddings).

    Raises UnsupportedModel when there are no products, or a weight is NaN or infinite.
    """
    if not products:
        raise UnsupportedModel("its layers have no product with constant weights that int8 could replace")
    replace_products(graph, products, _INT8)


def _pack(graph: ir.Graph, weight: ir.Value, transposed: bool) -> tuple[ir.Value, ...]:
    """(packed int8 weight, scale of each output channel)."""
    assert weight.const_value is not None
    matrix: FloatArray = weight.const_value.numpy()
    packed, scale = pack_weight(matrix.T if transposed else matrix)
    return (
        constant(graph, f"{weight.name}.packed", ir.tensor(packed)),
        constant(graph, f"{weight.name}.scale", ir.tensor(scale)),
    )


_INT8 = Packing(OPERATOR, EMBEDDING, _pack, "int8")
