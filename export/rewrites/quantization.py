"""Products with constant weights become products of weights in 8 or 4 bits and activations quantised row by row, in 8.

A row's scale is its own, so a sequence still does not depend on its neighbours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import onnx_ir as ir

from fastserve.errors import UnsupportedModel
from fastserve.export.options import INT4, INT8
from fastserve.export.rewrites.graph_edits import constant
from fastserve.export.rewrites.packed_products import Packing, constant_products, replace_products
from fastserve.worker.kernels.int4_weight import pack_int4_weight
from fastserve.worker.kernels.quantized_weight import FloatArray, Int8Array, pack_weight

OPERATOR, EMBEDDING = "QuantizedMatMul", "QuantizedGather"

_IN_A_LAYER = re.compile(r"\.\d+\.[^/]*/")
"""In the name of a node: its module is in one of a list of modules, which is what layers are, and heads are not."""


def quantize_layers(graph: ir.Graph) -> None:
    """Replace every product with a constant weight in the layers, and the bias that is added to it, by one in int8. Embeddings,
    the head and the normalisations stay as they are.

    Raises UnsupportedModel when there is none, or a weight is NaN or infinite.
    """
    products = [node for node in constant_products(graph) if is_in_a_layer(node)]
    if not products:
        raise UnsupportedModel("its layers have no product with constant weights that int8 could replace")
    quantize_products(graph, products, INT8)


def is_in_a_layer(node: ir.Node) -> bool:
    """Whether a module of the source that is in a list of modules computes ``node``."""
    return _IN_A_LAYER.search(node.name or "") is not None


def quantize_products(graph: ir.Graph, products: Sequence[ir.Node], precision: str) -> None:
    """Replace ``products``, the biases added to them, and, in int8, lookups in a table that is one of their weights (tied
    embeddings). ``precision``: of the weights, int8 or int4.

    Raises UnsupportedModel when a weight is NaN or infinite.
    """
    replace_products(graph, products, _packing(precision))


def _packing(precision: str) -> Packing:
    if precision == INT4:
        return Packing(OPERATOR, None, functools.partial(_pack, pack_int4_weight), INT4, {"weight_bits": 4})
    return Packing(OPERATOR, EMBEDDING, functools.partial(_pack, pack_weight), INT8)


def _pack(
    pack: Callable[[FloatArray], tuple[Int8Array, FloatArray]], graph: ir.Graph, weight: ir.Value, transposed: bool
) -> tuple[ir.Value, ...]:
    """(packed weight, scale of each output channel)."""
    assert weight.const_value is not None
    matrix: FloatArray = weight.const_value.numpy()
    packed, scale = pack(matrix.T if transposed else matrix)
    return (
        constant(graph, f"{weight.name}.packed", ir.tensor(packed)),
        constant(graph, f"{weight.name}.scale", ir.tensor(scale)),
    )
