"""Norms and gated activations that one product alone reads become a part of it: no operation and no tensor of their own.

The rows of a product are computed right before they are quantised. What they give is the same, to the bit.
"""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites import gated_activation, norms, quantization
from fastserve.export.rewrites.graph_edits import new_node, replace

_FIRST_INPUT = 4
"""Of a norm's weight, bias and skip among a product's inputs; its attributes are in ``worker/kernels/row_prologue.h``."""


def fuse_prologues(graph: ir.Graph) -> None:
    """Let each quantised product that is the only reader of a norm or a gated activation compute it."""
    for product in [node for node in graph if node.domain == DOMAIN and node.op_type == quantization.OPERATOR]:
        before = product.inputs[0].producer() if product.inputs[0] is not None else None
        if before is None or before.domain != DOMAIN or not _only_reader(product, before.outputs[0]):
            continue
        if before.op_type == norms.OPERATOR:
            attributes = {name: attribute.value for name, attribute in before.attributes.items()}
            _fuse(graph, before, product, [*before.inputs[1:], None, None][:3], attributes | {"prologue": "norm"})
        elif before.op_type == gated_activation.OPERATOR:
            _fuse(graph, before, product, [], {"prologue": before.attributes["activation"].as_string()})
    graph.sort()  # who reads a sum of rows may stand before the product that makes it now


def _only_reader(node: ir.Node, value: ir.Value) -> bool:
    return not value.is_graph_output() and [reader for reader, _ in value.uses()] == [node]


def _fuse(
    graph: ir.Graph,
    before: ir.Node,
    product: ir.Node,
    operands: list[ir.Value | None],
    attributes: dict[str, int | float | str],
) -> None:
    """``operands``: what ``before`` reads beside its rows."""
    own = [*product.inputs[1:], None, None, None][: _FIRST_INPUT - 1]
    inputs = [before.inputs[0], *own, *operands]
    while inputs[-1] is None:
        inputs.pop()
    sums = before.outputs[1:]
    settings = {name: attribute.value for name, attribute in product.attributes.items()} | attributes
    fused = new_node(graph, product, (product.domain, product.op_type), inputs, [product.outputs[0], *sums], settings)
    fused.name = product.name
    for old, new in zip([product.outputs[0], *sums], fused.outputs, strict=True):
        replace(old, new)
    graph.remove([product, before], safe=True)
