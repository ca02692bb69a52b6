"""Rewrites of a packed encoder's graph that make it faster and change its results by no more than rounding."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.export.attention import DOMAIN
from fastserve.export.encoders.packed_attention import ATTENTION
from fastserve.export.encoders.rotary_nodes import use_rotary_nodes
from fastserve.export.rewrites.batch_axis import drop_batch_axis
from fastserve.export.rewrites.early_gather import gather_early
from fastserve.export.rewrites.graph_edits import drop_reshapes, replace, unshaped
from fastserve.export.rewrites.projections import Projection, joined, split_projections


def optimize(model: ir.Model, longest: int) -> None:
    """All rewrites, in the order in which each finds what it looks for. ``longest``: tokens the model has positions for."""
    drop_batch_axis(model.graph)
    RemoveUnusedNodesPass()(model)
    split_projections(model.graph)
    use_rotary_nodes(model.graph, longest)
    drop_reshapes(model.graph)
    fuse_query_key_value(model.graph)
    RemoveUnusedNodesPass()(model)
    gather_early(model.graph)
    RemoveUnusedNodesPass()(model)
    share_equal_weights(model.graph)


def fuse_query_key_value(graph: ir.Graph) -> None:
    """Where query, key and value of a layer are nothing but three projections of the same rows, make them with one product and
    give them to attention packed."""
    for attention in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, ATTENTION)]:
        found = [projection for value in attention.inputs[:3] if (projection := Projection.behind(unshaped(value))) is not None]
        packed = joined(found, f"{attention.name}.query_key_value") if len(found) == 3 else None
        if packed is None:
            continue
        operands = [packed.emit(graph, attention), None, None, *attention.inputs[3:]]
        node = ir.Node(DOMAIN, ATTENTION, operands, list(attention.attributes.values()), name=f"{attention.name}.packed")
        node.outputs[0].type, node.outputs[0].shape = attention.outputs[0].type, attention.outputs[0].shape
        graph.insert_before(attention, [node])
        replace(attention.outputs[0], node.outputs[0])
        graph.remove(attention, safe=True)


def share_equal_weights(graph: ir.Graph) -> None:
    """Store equal constants once: ALBERT's layers are one."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for value in list(graph.initializers.values()):
        assert value.const_value is not None and value.name is not None
        content = np.ascontiguousarray(value.const_value.numpy())
        key = (value.const_value.dtype, tuple(value.const_value.shape), hashlib.sha256(content.data).digest())
        if (same := kept.setdefault(key, value)) is not value:
            value.replace_all_uses_with(same)
            del graph.initializers[value.name]
