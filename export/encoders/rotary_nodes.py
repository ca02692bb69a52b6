"""Rotary position embeddings of an encoder as the one operation ONNX Runtime has for them."""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.encoders.packed_attention import ATTENTION
from fastserve.export.graph_guards import TOKENS
from fastserve.export.rewrites.graph_edits import integers_constant, is_rows, made_by, replace, width
from fastserve.export.rewrites.rotation import POSITIONS, AngleTables, Rotation, find_rotation

OPERATOR_DOMAIN, OPERATOR = "com.microsoft", "RotaryEmbedding"
"""A contributed operator of ONNX Runtime: input [batch, length, n], position_ids [batch, length], cos_cache and sin_cache
[positions, head_size / 2]. It refuses a length of more than the tables' rows, so every token is a batch entry of length 1."""


def use_rotary_nodes(graph: ir.Graph, longest: int) -> None:
    """Replace the rotations of queries and keys [num_tokens, heads * head_size]. ``longest``: rows of the tables."""
    tables = AngleTables(graph, longest)
    for attention in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, ATTENTION)]:
        for value in dict.fromkeys(attention.inputs[:2]):
            found = find_rotation(value) if value is not None else None
            if value is not None and found is not None:
                _replace(graph, value, found, tables)


def _replace(graph: ir.Graph, rotated: ir.Value, found: Rotation, tables: AngleTables) -> None:
    shaped, node = made_by("Reshape", found.states), rotated.producer()
    plain = shaped.inputs[0] if shaped is not None else None
    size, cosines, sines = width(plain), tables.table(found.cosines), tables.table(found.sines)
    if node is None or plain is None or not is_rows(plain) or size is None or cosines is None or sines is None:
        return
    if width(found.states) != found.size:  # of a part of each head
        return
    positions = next(value for value in graph.inputs if value.name == POSITIONS)
    name = f"{rotated.name}.rotary"
    rows = ir.node("Reshape", [plain, integers_constant(graph, f"{name}.shape", [-1, 1, size])])
    places = ir.node("Unsqueeze", [positions, integers_constant(graph, f"{name}.length_axis", [1])])
    operands = [rows.outputs[0], places.outputs[0], cosines, sines]
    num_heads = ir.AttrInt64("num_heads", size // found.size)
    turned = ir.Node(OPERATOR_DOMAIN, OPERATOR, operands, [num_heads], name=name)
    flat = ir.node("Reshape", [turned.outputs[0], integers_constant(graph, f"{name}.flat_shape", [-1, size])])
    for new in (rows, turned, flat):
        new.outputs[0].type = rotated.type
        new.outputs[0].shape = ir.Shape([TOKENS, size] if new is flat else [TOKENS, 1, size])
    places.outputs[0].type, places.outputs[0].shape = positions.type, ir.Shape([TOKENS, 1])
    graph.insert_before(node, [rows, places, turned, flat])
    graph.opset_imports.setdefault(OPERATOR_DOMAIN, 1)
    replace(rotated, flat.outputs[0])
