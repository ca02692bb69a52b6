"""Gated feed-forward layers (Shazeer, 2020): gates and values by one product, the activation and its product as one operation."""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites.graph_edits import both_orders, made_by, new_node, replace
from fastserve.export.rewrites.projections import Projection, joined

OPERATOR = "GatedActivation"
"""Input [num_tokens, 2 n]: gates, then values. See ``worker/kernels/gated_activation_op.cpp``."""


def fuse_gated_activations(graph: ir.Graph) -> None:
    """``activation(gate) * value``, both projections of the same rows, activation SiLU or GELU by its tanh approximation."""
    for node in [node for node in graph if node.op_type == "Mul"]:
        for activated, value in both_orders(node):
            found = _activation(activated)
            parts = [Projection.behind(found[1] if found is not None else None), Projection.behind(value)]
            known = [part for part in parts if part is not None]
            both = joined(known, f"{node.name}.gate_up") if len(known) == 2 else None
            if found is not None and both is not None and known[0].width == known[1].width:
                operands: list[ir.Value | None] = [both.emit(graph, node)]
                fused = new_node(graph, node, (DOMAIN, OPERATOR), operands, [node.outputs[0]], {"activation": found[0]})
                replace(node.outputs[0], fused.outputs[0])
                break


def _activation(value: ir.Value) -> tuple[str, ir.Value] | None:
    """(name, x) if ``value`` is the activation of x."""
    gelu = made_by("Gelu", value)
    if gelu is not None and gelu.inputs[0] is not None:
        tanh = "approximate" in gelu.attributes and gelu.attributes["approximate"].as_string() == "tanh"
        return ("gelu_tanh", gelu.inputs[0]) if tanh else None
    for x, factor in both_orders(made_by("Mul", value)):
        sigmoid = made_by("Sigmoid", factor)
        if sigmoid is not None and sigmoid.inputs[0] is x:
            return "silu", x
    return None
