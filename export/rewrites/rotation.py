"""Rotary position embeddings (Su et al., 2021) where the source spells them out, and their angles as tables.

``x * cos + concat(-second half, first half) * sin``, with cosines and sines computed from the positions. They depend on nothing
else, so they become tables, one row a position.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fastserve.export.rewrites.graph_edits import both_orders, constant, integers, made_by, swaps_heads, width

POSITIONS = "position_ids"

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """``states``: what is rotated, [num_tokens, heads, head_size], its first ``size`` elements; ``cosines`` and ``sines``:
    [1, num_tokens, size]."""

    states: ir.Value
    cosines: ir.Value
    sines: ir.Value
    size: int


def find_rotation(rotated: ir.Value) -> Rotation | None:
    """The rotation that makes ``rotated``, [num_tokens, heads * head_size]."""
    reshape = made_by("Reshape", rotated)
    back = made_by("Transpose", reshape.inputs[0]) if reshape is not None else None
    if back is None or not swaps_heads(back) or back.inputs[0] is None:
        return None
    whole, size = made_by("Concat", back.inputs[0]), width(back.inputs[0])
    if whole is None or size is None:
        return _rotation_of(back.inputs[0], None)
    first, rest = whole.inputs if len(whole.inputs) == 2 and whole.attributes["axis"].as_int() in (-1, 2) else (None, None)
    tail, turned = made_by("Slice", rest), width(first)
    if first is None or tail is None or turned is None or last_axis_range(tail, size) != (turned, size):
        return None
    return _rotation_of(first, tail.inputs[0])


def _rotation_of(value: ir.Value, source: ir.Value | None) -> Rotation | None:
    """``value``: the sum [heads, num_tokens, size]. ``source``: what it must be the rotated start of; None: all of its own x."""
    for direct, turned in both_orders(made_by("Add", value)):
        for x, cosines in both_orders(made_by("Mul", direct)):
            for halves, sines in both_orders(made_by("Mul", turned)):
                size = width(x)
                if size is None or not _turns(halves, x, size):
                    continue
                start = made_by("Slice", x) if source is not None else None
                if source is not None and (start is None or start.inputs[0] is not source or not _starts(start, source, size)):
                    continue
                swap = made_by("Transpose", x if source is None else source)
                if swap is not None and swaps_heads(swap) and swap.inputs[0] is not None:
                    return Rotation(swap.inputs[0], cosines, sines, size)
    return None


def _starts(node: ir.Node, source: ir.Value, size: int) -> bool:
    """Whether a Slice takes the first ``size`` elements."""
    longest = width(source)
    return longest is not None and last_axis_range(node, longest) == (0, size)


def _turns(value: ir.Value, x: ir.Value, size: int) -> bool:
    """Whether ``value`` is [-second half of x, first half of x]."""
    whole = made_by("Concat", value)
    if whole is None or len(whole.inputs) != 2 or whole.attributes["axis"].as_int() not in (-1, 2):
        return False
    negated, half = made_by("Neg", whole.inputs[0]), size // 2
    parts = [made_by("Slice", negated.inputs[0] if negated is not None else None), made_by("Slice", whole.inputs[1])]
    wanted = ((half, 2 * half), (0, half))
    return all(
        part is not None and part.inputs[0] is x and last_axis_range(part, size) == ends
        for part, ends in zip(parts, wanted, strict=True)
    )


def last_axis_range(node: ir.Node, size: int) -> tuple[int, int] | None:
    """[start, end) of a Slice of [heads, num_tokens, size] along its last axis."""
    numbers = [integers(value) for value in node.inputs[1:]]
    if len(numbers) < 3 or numbers[2] not in ([2], [-1]) or numbers[3:] not in ([], [[1]]) or not numbers[0] or not numbers[1]:
        return None
    start, end, _ = slice(numbers[0][0], numbers[1][0]).indices(size)
    return start, end


class AngleTables:
    """Cosines or sines [1, num_tokens, size] as constants of a graph [``longest``, size / 2], one row a position."""

    def __init__(self, graph: ir.Graph, longest: int) -> None:
        self._graph = graph
        self._longest = longest
        self._tables: dict[ir.Value, ir.Value | None] = {}

    def table(self, angles: ir.Value) -> ir.Value | None:
        """None if the halves of ``angles`` differ, or positions are not all it depends on."""
        if angles not in self._tables:
            found = _evaluated(self._graph, angles, self._longest)
            half = 0 if found is None else found.shape[1] // 2
            if found is None or not np.array_equal(found[:, :half], found[:, half:]):
                self._tables[angles] = None
            else:
                rows = ir.tensor(np.ascontiguousarray(found[:, :half]))
                self._tables[angles] = constant(self._graph, f"{angles.name}.table", rows)
        return self._tables[angles]


def _evaluated(graph: ir.Graph, value: ir.Value, longest: int) -> FloatArray | None:
    """``value`` [1, num_tokens, n] for positions 0 to ``longest`` - 1; None if it depends on anything else."""
    positions = [given for given in graph.inputs if given.name == POSITIONS]
    try:
        part = ir.convenience.extract(graph, positions, [value])
    except ValueError:  # it needs more than the positions
        return None
    model = ir.Model(part, ir_version=10)
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {POSITIONS: np.arange(longest)})
    table: FloatArray = np.asarray(found, np.float32)
    return table[0] if table.ndim == 3 and table.shape[:2] == (1, longest) else None
