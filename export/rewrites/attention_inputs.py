"""What comes before a decoder's attention, into its node: rotations, norms of heads, and query, key and value in one product.

The node finds a token's position by itself (``past_seqlens`` plus its place in the run), which is its entry of ``position_ids``.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from fastserve.export.attention import DOMAIN, OPERATOR
from fastserve.export.rewrites.graph_edits import integers_constant, is_rows, made_by, new_node, replace, unshaped, width
from fastserve.export.rewrites.norms import OPERATOR as NORM
from fastserve.export.rewrites.projections import Projection, joined
from fastserve.export.rewrites.rotation import AngleTables, Rotation, find_rotation

_NUM_INPUTS = 14
_COSINES, _SINES, _QUERY_NORM, _KEY_NORM = 8, 9, 12, 13
"""Places among the node's inputs, which are in the order of ``com.microsoft::PagedAttention``."""


@dataclasses.dataclass(frozen=True, slots=True)
class _HeadStates:
    """What attention reads as queries or keys, taken apart: ``source`` in heads or flat, then a norm, then a rotation."""

    source: ir.Value
    norm: ir.Node | None
    rotation: Rotation | None

    @property
    def epsilon(self) -> float | None:
        return None if self.norm is None else self.norm.attributes["epsilon"].as_float()


def fold_into_attention(graph: ir.Graph, longest: int) -> None:
    """Where queries and keys of a layer are rotated alike, let its node rotate them, and normalise them before; where query, key
    and value are projections of the same rows, make them with one product. ``longest``: tokens of a context."""
    tables = AngleTables(graph, longest)
    for node in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]:
        _fold(graph, node, tables)


def _fold(graph: ir.Graph, node: ir.Node, tables: AngleTables) -> None:
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (_NUM_INPUTS - len(node.inputs))]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    query, key, value = inputs[:3]
    assert query is not None and key is not None and value is not None
    parts = _folded(query, key, tables)
    if parts is not None:
        rotation, norms = parts[0].rotation, [part.norm for part in parts]
        inputs[:2] = [_flat(graph, node, part.source, like) for part, like in zip(parts, (query, key), strict=True)]
        if rotation is not None:
            inputs[_COSINES], inputs[_SINES] = tables.table(rotation.cosines), tables.table(rotation.sines)
            attributes["do_rotary"] = 1
        if norms[0] is not None and norms[1] is not None:
            inputs[_QUERY_NORM], inputs[_KEY_NORM] = norms[0].inputs[1], norms[1].inputs[1]
            attributes["qk_norm_epsilon"] = norms[0].attributes["epsilon"].as_float()
    found = [projection for given in inputs[:3] if (projection := Projection.behind(unshaped(given))) is not None]
    packed = joined(found, f"{node.name}.query_key_value") if len(found) == 3 else None
    if packed is not None:
        inputs[:3] = [packed.emit(graph, node), None, None]
    if parts is None and packed is None:
        return
    while inputs[-1] is None:
        inputs.pop()
    folded = new_node(graph, node, (DOMAIN, OPERATOR), inputs, [node.outputs[0]], attributes)
    replace(node.outputs[0], folded.outputs[0])
    graph.remove(node, safe=True)


def _folded(query: ir.Value, key: ir.Value, tables: AngleTables) -> tuple[_HeadStates, _HeadStates] | None:
    """Both taken apart; None where there is nothing that the node could do for both alike."""
    parts = (_take_apart(query), _take_apart(key))
    rotations = [part.rotation for part in parts if part.rotation is not None]
    if len(rotations) == 1 or len({(r.cosines, r.sines, r.size) for r in rotations}) > 1:
        return None
    if any(tables.table(angles) is None for r in rotations for angles in (r.cosines, r.sines)):
        return None
    if len({part.epsilon for part in parts}) > 1:
        return None
    return parts if rotations or parts[0].norm is not None else None


def _take_apart(value: ir.Value) -> _HeadStates:
    rotation = find_rotation(value)
    states = rotation.states if rotation is not None else _in_heads(value)
    norm = states.producer()
    if norm is None or (norm.domain, norm.op_type) != (DOMAIN, NORM) or len(states.shape or ()) != 3 or norm.inputs[0] is None:
        return _HeadStates(states if rotation is not None else value, None, rotation)
    if norm.attributes["centred"].as_int() or any(given is not None for given in norm.inputs[2:]):  # a bias or a sum
        return _HeadStates(states if rotation is not None else value, None, rotation)
    return _HeadStates(norm.inputs[0], norm, rotation)


def _in_heads(value: ir.Value) -> ir.Value:
    """[num_tokens, heads, head_size] that ``value`` was flattened from, if it was."""
    flattened = made_by("Reshape", value)
    return flattened.inputs[0] if flattened is not None and flattened.inputs[0] is not None else value


def _flat(graph: ir.Graph, before: ir.Node, states: ir.Value, like: ir.Value) -> ir.Value:
    """``states`` as [num_tokens, heads * head_size], which is the shape of ``like``."""
    whole = unshaped(states)
    if whole is not None and is_rows(whole) and width(whole) == width(like):
        return whole
    size = width(like)
    assert size is not None
    flat = ir.node("Reshape", [states, integers_constant(graph, f"{like.name}.unchanged", [-1, size])])
    flat.outputs[0].type, flat.outputs[0].shape = like.type, like.shape
    graph.insert_before(before, [flat])
    return flat.outputs[0]
