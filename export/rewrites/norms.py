"""Norms of rows, which the source spells out or which have a node of their own, as one operation each, residual sum included."""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites.graph_edits import (
    both_orders,
    integers,
    is_rows,
    made_by,
    new_node,
    number,
    replace,
    swaps_heads,
    width,
)

OPERATOR = "RowNorm"
"""Inputs x, weight, bias, skip; outputs y and, with skip, the sum x + skip. See ``worker/kernels/row_norm_op.cpp``."""


def fuse_norms(graph: ir.Graph) -> None:
    """RMSNorm (Zhang & Sennrich, 2019) and LayerNorm (Ba et al., 2016) along the last axis."""
    for node in list(graph):
        if node.op_type == "LayerNormalization":
            _fuse_layer_norm(graph, node)
        elif node.op_type == "Mul":
            _fuse_rms_norm(graph, node)


def _fuse_layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, *rest = node.inputs
    rank = len(x.shape) if x is not None and x.shape is not None else 0
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if x is None or rank < 2 or axis % rank != rank - 1 or any(value.uses() for value in node.outputs[1:]):
        return
    if weight is None or weight.shape is None or len(weight.shape) != 1:
        return
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    bias = rest[0] if rest else None
    _replace_by_norm(graph, node, [x, weight, bias], epsilon, centred=True)


def _fuse_rms_norm(graph: ir.Graph, node: ir.Node) -> None:
    """``weight * (x / sqrt(mean(x^2) + epsilon))``"""
    for weight, scaled in both_orders(node):
        found = _normalised(scaled) if weight.const_value is not None else None
        if found is not None and weight.shape == ir.Shape([width(found[0])]):
            _replace_by_norm(graph, node, [found[0], weight, None], found[1], centred=False)
            return


def _normalised(value: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, epsilon) if ``value`` is ``x * 1 / sqrt(mean(x^2) + epsilon)``, the mean along the last axis."""
    for x, factor in both_orders(made_by("Mul", value)):
        reciprocal = made_by("Reciprocal", factor)
        root = made_by("Sqrt", reciprocal.inputs[0]) if reciprocal is not None else None
        total = made_by("Add", root.inputs[0]) if root is not None else None
        for mean, offset in both_orders(total):
            epsilon, square = number(offset), _mean_of(mean)
            if epsilon is not None and square is not None and _squared(square) is x and x.shape is not None and len(x.shape) > 1:
                return x, epsilon
    return None


def _mean_of(value: ir.Value) -> ir.Value | None:
    """What ``value`` is the mean of, along the last axis, which is kept."""
    node = made_by("ReduceMean", value)
    if node is None or node.inputs[0] is None or node.inputs[0].shape is None or len(node.inputs) < 2:
        return None
    kept = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
    return node.inputs[0] if kept and integers(node.inputs[1]) in ([-1], [len(node.inputs[0].shape) - 1]) else None


def _squared(value: ir.Value) -> ir.Value | None:
    if (power := made_by("Pow", value)) is not None and number(power.inputs[1]) == 2:
        return power.inputs[0]
    product = made_by("Mul", value)
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _replace_by_norm(graph: ir.Graph, node: ir.Node, inputs: list[ir.Value | None], epsilon: float, *, centred: bool) -> None:
    """Where heads were swapped to the front before, they are now swapped after: the norm does not mind, and others look for the
    swap."""
    attributes = {"epsilon": epsilon, "centred": int(centred)}
    swap = made_by("Transpose", inputs[0])
    if swap is None or swap.inputs[0] is None or not swaps_heads(swap):
        norm = new_node(graph, node, (DOMAIN, OPERATOR), inputs, [node.outputs[0]], attributes)
        replace(node.outputs[0], norm.outputs[0])
        return
    norm = new_node(graph, node, (DOMAIN, OPERATOR), [swap.inputs[0], *inputs[1:]], [swap.inputs[0]], attributes)
    swapped = ir.node("Transpose", [norm.outputs[0]], {"perm": [1, 0, 2]})
    swapped.outputs[0].type, swapped.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, [swapped])
    replace(node.outputs[0], swapped.outputs[0])


def fuse_residual_sums(graph: ir.Graph) -> None:
    """Let a norm of a sum of two values [num_tokens, n] make the sum, too, also for others that read it."""
    for norm in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]:
        norm_inputs: list[ir.Value | None] = [*norm.inputs, None][:3]  # trailing inputs that are absent are not listed
        total = made_by("Add", norm.inputs[0])
        if total is None or any(value is None or value.const_value is not None or not is_rows(value) for value in total.inputs):
            continue
        if len({width(value) for value in (*total.inputs, total.outputs[0])}) != 1:
            continue
        x, skip = total.inputs
        attributes = {name: attribute.value for name, attribute in norm.attributes.items()}
        likes = [norm.outputs[0], total.outputs[0]]
        fused = new_node(graph, total, (DOMAIN, OPERATOR), [x, *norm_inputs[1:], skip], likes, attributes)
        fused.name = norm.name
        replace(norm.outputs[0], fused.outputs[0])
        replace(total.outputs[0], fused.outputs[1])
        graph.remove([norm, total], safe=True)
