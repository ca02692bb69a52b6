"""Rotary position embeddings as the one operation ONNX Runtime has for them.

The source spells a rotation out: ``x * cos + concat(-second half, first half) * sin``, with cosines and sines computed from the
positions. They depend on nothing else, so they become tables, one row a position.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fastserve.export.attention import DOMAIN
from fastserve.export.encoders.batch_axis import constant, integers, integers_constant, made_by, replace
from fastserve.export.encoders.packed_attention import ATTENTION
from fastserve.export.graph_guards import TOKENS

OPERATOR_DOMAIN, OPERATOR = "com.microsoft", "RotaryEmbedding"
"""A contributed operator of ONNX Runtime: input [batch, length, n], position_ids [batch, length], cos_cache and sin_cache
[positions, head_size / 2]. It refuses a length of more than the tables' rows, so every token is a batch entry of length 1."""

_POSITIONS = "position_ids"

FloatArray = npt.NDArray[np.float32]


def use_rotary_nodes(graph: ir.Graph, longest: int) -> None:
    """Replace the rotations of queries and keys [num_tokens, heads * head_size]. ``longest``: rows of the tables."""
    rewrite = _Rewrite(graph, longest)
    for attention in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, ATTENTION)]:
        for value in dict.fromkeys(attention.inputs[:2]):
            if value is not None:
                rewrite.visit(value)


class _Rewrite:
    def __init__(self, graph: ir.Graph, longest: int) -> None:
        self._graph = graph
        self._longest = longest
        self._tables: dict[ir.Value, ir.Value | None] = {}

    def visit(self, rotated: ir.Value) -> None:
        """``rotated``: what attention reads."""
        found, node = _rotation(rotated), rotated.producer()
        if found is None or node is None:
            return
        plain, *tables = found[0], *(table for angles in found[1:] if (table := self._table(angles)) is not None)
        sizes = [value.shape[1] for value in (plain, *tables) if value.shape is not None]
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) == 3:
            width, half, _ = numbers
            self._replace(rotated, node, (plain, *tables), width // (2 * half))

    def _replace(self, rotated: ir.Value, node: ir.Node, found: tuple[ir.Value, ...], num_heads: int) -> None:
        """``found``: what is rotated [num_tokens, heads * head_size], and the tables of cosines and sines."""
        plain, *tables = found
        assert plain.shape is not None
        width = plain.shape[1]
        assert isinstance(width, int)
        positions = next(value for value in self._graph.inputs if value.name == _POSITIONS)
        name = f"{rotated.name}.rotary"
        rows = ir.node("Reshape", [plain, integers_constant(self._graph, f"{name}.shape", [-1, 1, width])])
        places = ir.node("Unsqueeze", [positions, integers_constant(self._graph, f"{name}.length_axis", [1])])
        operands = [rows.outputs[0], places.outputs[0], *tables]
        turned = ir.Node(OPERATOR_DOMAIN, OPERATOR, operands, [ir.AttrInt64("num_heads", num_heads)], name=name)
        flat = ir.node("Reshape", [turned.outputs[0], integers_constant(self._graph, f"{name}.flat_shape", [-1, width])])
        for new in (rows, turned, flat):
            new.outputs[0].type = rotated.type
            new.outputs[0].shape = ir.Shape([TOKENS, width] if new is flat else [TOKENS, 1, width])
        places.outputs[0].type, places.outputs[0].shape = positions.type, ir.Shape([TOKENS, 1])
        self._graph.insert_before(node, [rows, places, turned, flat])
        self._graph.opset_imports.setdefault(OPERATOR_DOMAIN, 1)
        replace(rotated, flat.outputs[0])

    def _table(self, angles: ir.Value) -> ir.Value | None:
        """``angles`` [1, num_tokens, head_size] for each position, [longest, head_size / 2], if its halves are equal and
        positions are all it depends on."""
        if angles not in self._tables:
            table = _evaluated(self._graph, angles, self._longest)
            half = 0 if table is None else table.shape[1] // 2
            if table is None or not np.array_equal(table[:, :half], table[:, half:]):
                self._tables[angles] = None
            else:
                rows = ir.tensor(np.ascontiguousarray(table[:, :half]))
                self._tables[angles] = constant(self._graph, f"{angles.name}.table", rows)
        return self._tables[angles]


def _rotation(rotated: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(what is rotated [num_tokens, heads * head_size], cosines and sines [1, num_tokens, head_size]), if ``rotated`` is the
    sum of x * cosines and the turned x * sines, x being [heads, num_tokens, head_size]."""
    reshape = made_by("Reshape", rotated)
    back = made_by("Transpose", reshape.inputs[0]) if reshape is not None else None
    total = made_by("Add", back.inputs[0]) if back is not None else None
    products = [made_by("Mul", value) for value in total.inputs] if total is not None else []
    for direct, turned in (products, products[::-1]) if len(products) == 2 else ():
        if direct is None or turned is None:
            continue
        for x, cosines in (direct.inputs, direct.inputs[::-1]):
            for halves, sines in (turned.inputs, turned.inputs[::-1]):
                plain = _flat_heads(x) if x is not None and _turns(halves, x) else None
                if plain is not None and cosines is not None and sines is not None and _swaps_heads(back):
                    return plain, cosines, sines
    return None


def _turns(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether ``value`` is [-second half of x, first half of x]."""
    whole = made_by("Concat", value)
    if whole is None or len(whole.inputs) != 2 or x.shape is None or not isinstance(x.shape[2], int):
        return False
    negated, half = made_by("Neg", whole.inputs[0]), x.shape[2] // 2
    parts = [made_by("Slice", negated.inputs[0] if negated is not None else None), made_by("Slice", whole.inputs[1])]
    wanted = ((half, 2 * half), (0, half))
    return whole.attributes["axis"].as_int() in (-1, 2) and all(
        part is not None and part.inputs[0] is x and _last_axis_range(part, x.shape[2]) == ends
        for part, ends in zip(parts, wanted, strict=True)
    )


def _last_axis_range(node: ir.Node, size: int) -> tuple[int, int] | None:
    """[start, end) of a Slice of [heads, num_tokens, size] along its last axis."""
    numbers = [integers(value) for value in node.inputs[1:]]
    if len(numbers) < 3 or numbers[2] not in ([2], [-1]) or numbers[3:] not in ([], [[1]]) or not numbers[0] or not numbers[1]:
        return None
    start, end, _ = slice(numbers[0][0], numbers[1][0]).indices(size)
    return start, end


def _flat_heads(value: ir.Value) -> ir.Value | None:
    """[num_tokens, heads * head_size], of which ``value`` is [heads, num_tokens, head_size]."""
    swap = made_by("Transpose", value)
    shaped = made_by("Reshape", swap.inputs[0]) if _swaps_heads(swap) and swap is not None else None
    flat = shaped.inputs[0] if shaped is not None else None
    return flat if flat is not None and flat.shape is not None and len(flat.shape) == 2 else None


def _swaps_heads(node: ir.Node | None) -> bool:
    return node is not None and list(node.attributes["perm"].as_ints()) == [1, 0, 2]


def _evaluated(graph: ir.Graph, value: ir.Value, longest: int) -> FloatArray | None:
    """``value`` [1, num_tokens, n] for positions 0 to ``longest`` - 1; None if it depends on anything else."""
    positions = [given for given in graph.inputs if given.name == _POSITIONS]
    try:
        part = ir.convenience.extract(graph, positions, [value])
    except ValueError:  # it needs more than the positions
        return None
    model = ir.Model(part, ir_version=10)
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {_POSITIONS: np.arange(longest)})
    table: FloatArray = np.asarray(found, np.float32)
    return table[0] if table.ndim == 3 and table.shape[:2] == (1, longest) else None
