"""Rewrites of a packed decoder's graph that make it faster and change its results by no more than rounding."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.export.rewrites.attention_inputs import fold_into_attention
from fastserve.export.rewrites.batch_axis import drop_batch_axis
from fastserve.export.rewrites.early_gather import gather_early
from fastserve.export.rewrites.gated_activation import fuse_gated_activations
from fastserve.export.rewrites.graph_edits import drop_reshapes
from fastserve.export.rewrites.norms import fuse_norms, fuse_residual_sums
from fastserve.export.rewrites.projections import split_projections
from fastserve.export.rewrites.rotation import POSITIONS
from fastserve.export.rewrites.sampled_rows import pick_rows_directly


def optimize_decoder(model: ir.Model, longest: int) -> None:
    """All rewrites, in the order in which each finds what it looks for; what does not match stays as the source computes it.
    ``longest``: tokens of a context."""
    graph = model.graph
    pick_rows_directly(graph)
    RemoveUnusedNodesPass()(model)
    drop_batch_axis(graph)
    RemoveUnusedNodesPass()(model)
    drop_reshapes(graph)
    fuse_norms(graph)
    RemoveUnusedNodesPass()(model)
    split_projections(graph)
    fold_into_attention(graph, longest)
    fuse_gated_activations(graph)
    RemoveUnusedNodesPass()(model)
    fuse_residual_sums(graph)
    gather_early(graph)
    RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if value.name == POSITIONS and not value.uses()]:
        graph.inputs.remove(value)  # attention knows them by itself
