"""Products of the flat rows with constant weights: finding them in a graph, cutting and joining them by columns.

Weights are only described here. A new one is put together when it is written, one at a time, so that a rewrite never holds the
weights of a model twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fastserve.export.graph_guards import TOKENS
from fastserve.export.rewrites.graph_edits import (
    constant,
    integers,
    integers_constant,
    is_rows,
    made_by,
    number,
    replace,
    swaps_heads,
)

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

_NARROWEST = 8
"""Columns below which a product of its own costs more than a copy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """The columns ``picked`` [n] of ``factor`` times a constant matrix [k, m], and of a bias [m]."""

    weight: ir.TensorProtocol
    transposed: bool
    """The matrix is stored [m, k]."""
    bias: FloatArray | None
    picked: IndexArray
    factor: float = 1.0

    @property
    def rows(self) -> int:
        """k"""
        return int(self.weight.shape.numpy()[1 if self.transposed else 0])

    def matrix(self) -> FloatArray:
        """[k, n]; a view where it can be one."""
        stored: FloatArray = self.weight.numpy()
        columns = (stored.T if self.transposed else stored)[:, _range_of(self.picked)]
        return columns if self.factor == 1.0 else columns * np.float32(self.factor)

    def vector(self) -> FloatArray | None:
        """[n], the bias."""
        return None if self.bias is None else self.bias[self.picked] * np.float32(self.factor)


def _range_of(picked: IndexArray) -> slice | IndexArray:
    start = int(picked[0])
    return slice(start, start + len(picked)) if np.array_equal(picked, np.arange(start, start + len(picked))) else picked


@dataclasses.dataclass(frozen=True, slots=True)
class Projection:
    """``rows`` [num_tokens, k] times a constant matrix of ``parts`` side by side [k, n], plus their biases: all or none."""

    rows: ir.Value
    parts: tuple[Columns, ...]
    name: str

    @classmethod
    def behind(cls, value: ir.Value | None) -> Projection | None:
        """The projection that ``value`` [num_tokens, n] is, if it is one; times a constant number, it still is."""
        node = None if value is None else value.producer()
        if node is not None and node.op_type == "Mul":
            return _scaled(node)
        bias = None
        if node is not None and node.op_type == "Add":
            constants = [value for value in node.inputs if value is not None and value.const_value is not None]
            others = [value for value in node.inputs if value is not None and value.const_value is None]
            if len(constants) != 1 or len(others) != 1:
                return None
            bias, node = constants[0].const_value, made_by("MatMul", others[0])
        return None if node is None else _product(node, bias)

    @property
    def width(self) -> int:
        """n"""
        return sum(len(part.picked) for part in self.parts)

    @property
    def has_bias(self) -> bool:
        return self.parts[0].bias is not None

    def select(self, picked: IndexArray) -> Projection:
        """The projection to the columns ``picked`` of one that is not joined."""
        (part,) = self.parts
        chosen = dataclasses.replace(part, picked=part.picked[picked])
        return dataclasses.replace(self, parts=(chosen,), name=f"{self.name}.{picked[0]}")

    def columns(self, start: int, end: int) -> Projection:
        """The projection to columns [start, end) of one that is not joined."""
        return self.select(np.arange(start, end))

    def emit(self, graph: ir.Graph, before: ir.Node) -> ir.Value:
        """New nodes that compute it: [num_tokens, n]."""
        made = [ir.node("MatMul", [self.rows, self._weight(graph)], name=self.name)]
        if self.has_bias:
            vectors = [vector for part in self.parts if (vector := part.vector()) is not None]
            bias = constant(graph, f"{self.name}.bias", ir.tensor(np.concatenate(vectors)))
            made.append(ir.node("Add", [made[0].outputs[0], bias], name=f"{self.name}.add"))
        for node in made:
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape([TOKENS, self.width])
        graph.insert_before(before, made)
        return made[-1].outputs[0]

    def _weight(self, graph: ir.Graph) -> ir.Value:
        parts, name = self.parts, f"{self.name}.weight"

        def joined_matrix() -> ir.TensorProtocol:
            return ir.tensor(np.concatenate([part.matrix() for part in parts], axis=1), name=name)

        shape = ir.Shape([parts[0].rows, self.width])
        return constant(graph, name, ir.LazyTensor(joined_matrix, ir.DataType.FLOAT, shape, name=name))


def _product(node: ir.Node, bias: ir.TensorProtocol | None) -> Projection | None:
    transposed = False
    if node.op_type == "Gemm" and bias is None:
        settings = {name: attribute.value for name, attribute in node.attributes.items()}
        if settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0 or settings.get("transA", 0):
            return None
        transposed = bool(settings.get("transB", 0))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = node.inputs[2].const_value
            if bias is None:
                return None
    elif node.op_type != "MatMul":
        return None
    rows, weight = node.inputs[:2]
    if not is_rows(rows) or rows is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    vector = None if bias is None else bias.numpy()
    width = int(weight.const_value.shape.numpy()[0 if transposed else 1])
    if vector is not None and vector.shape != (width,):
        return None
    part = Columns(weight.const_value, transposed, vector, np.arange(width))
    return Projection(rows, (part,), node.name or "")


def _scaled(node: ir.Node) -> Projection | None:
    for value, factor in (tuple(node.inputs), tuple(node.inputs[::-1])):
        scale, projection = number(factor), Projection.behind(value) if number(factor) is not None else None
        if projection is not None and scale is not None:
            parts = tuple(dataclasses.replace(part, factor=part.factor * scale) for part in projection.parts)
            return dataclasses.replace(projection, parts=parts)
    return None


def joined(projections: Sequence[Projection], name: str) -> Projection | None:
    """One projection to the columns of all, if they are of the same rows and all or none have a bias."""
    if len({projection.rows for projection in projections}) != 1 or len({p.has_bias for p in projections}) != 1:
        return None
    return Projection(projections[0].rows, tuple(part for projection in projections for part in projection.parts), name)


def split_projections(graph: ir.Graph) -> None:
    """Where a projection is cut into blocks of columns, make each block by a projection of its own, so that nothing is copied.

    Weights of query, key and value, or of gate and up, come in one piece like that.
    """
    for node in list(graph):
        if node.op_type == "Split":
            _split(graph, node)
            _split_heads(graph, node)
        elif node.op_type == "Slice":
            _slice(graph, node)
        elif node.op_type == "Squeeze":
            _pick_block(graph, node)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """[num_tokens, n] in parts."""
    projection = Projection.behind(node.inputs[0])
    widths = [value.shape[1] for value in node.outputs if value.shape is not None and len(value.shape) == 2]
    numbers = [width for width in widths if isinstance(width, int) and width >= _NARROWEST]
    if projection is None or node.attributes["axis"].as_int() not in (-1, 1) or len(numbers) != len(node.outputs):
        return
    start = 0
    for value, width in zip(list(node.outputs), numbers, strict=True):
        replace(value, projection.columns(start, start + width).emit(graph, node))
        start += width


def _split_heads(graph: ir.Graph, node: ir.Node) -> None:
    """[num_tokens, heads * n] as [heads, num_tokens, n], in parts of n: every head has its query, key and value side by side."""
    swap = made_by("Transpose", node.inputs[0])
    whole = made_by("Reshape", swap.inputs[0]) if swap is not None else None
    projection = Projection.behind(whole.inputs[0]) if whole is not None else None
    if swap is None or whole is None or projection is None or not swaps_heads(swap):
        return
    sizes = [size for size in whole.outputs[0].shape or () if isinstance(size, int)]  # all but the number of tokens
    widths = [size for value in node.outputs if value.shape is not None and isinstance(size := value.shape[-1], int)]
    if len(sizes) != 2 or len(widths) != len(node.outputs) or node.attributes["axis"].as_int() not in (-1, 2):
        return
    heads, start = sizes[0], 0
    for value, width in zip(list(node.outputs), widths, strict=True):
        picked = (np.arange(heads)[:, None] * sizes[1] + np.arange(start, start + width)).reshape(-1)
        flat = projection.select(picked).emit(graph, node)
        shaped = ir.node("Reshape", [flat, integers_constant(graph, f"{value.name}.heads", [-1, heads, width])])
        swapped = ir.node("Transpose", [shaped.outputs[0]], {"perm": [1, 0, 2]})
        shaped.outputs[0].type = swapped.outputs[0].type = value.type
        shaped.outputs[0].shape, swapped.outputs[0].shape = ir.Shape([TOKENS, heads, width]), value.shape
        graph.insert_before(node, [shaped, swapped])
        for back in [reader for reader, _ in value.uses() if reader.op_type == "Transpose" and swaps_heads(reader)]:
            replace(back.outputs[0], shaped.outputs[0])
        replace(value, swapped.outputs[0])
        start += width


def _slice(graph: ir.Graph, node: ir.Node) -> None:
    """[num_tokens, n], of which columns that follow each other are taken."""
    projection = Projection.behind(node.inputs[0])
    operands = [integers(value) for value in node.inputs[1:]]
    if projection is None or len(operands) < 3 or operands[2] not in ([-1], [1]) or operands[3:] not in ([], [[1]]):
        return
    starts, ends = operands[:2]
    if not starts or not ends:
        return
    start, end, _ = slice(starts[0], ends[0]).indices(projection.width)
    if end - start >= _NARROWEST:
        replace(node.outputs[0], projection.columns(start, end).emit(graph, node))


def _pick_block(graph: ir.Graph, node: ir.Node) -> None:
    """[num_tokens, n] as [num_tokens, blocks, heads, head_size], of which one block is taken and its axis dropped."""
    piece = made_by("Slice", node.inputs[0])
    whole = made_by("Reshape", piece.inputs[0]) if piece is not None else None
    projection = Projection.behind(whole.inputs[0]) if whole is not None else None
    result = node.outputs[0]
    if piece is None or whole is None or projection is None or result.shape is None:
        return
    sizes = [size for size in whole.outputs[0].shape or () if isinstance(size, int)]  # all but the number of tokens
    axes = [integers(value) for value in (node.inputs[1], piece.inputs[3] if len(piece.inputs) > 3 else None)]
    start, steps = integers(piece.inputs[1]), integers(piece.inputs[4]) if len(piece.inputs) > 4 else [1]
    if len(sizes) != 3 or any(axis not in ([1], [-3]) for axis in axes) or steps != [1] or start is None or start[0] < 0:
        return
    width = sizes[1] * sizes[2]
    block = projection.columns(start[0] * width, (start[0] + 1) * width).emit(graph, node)
    target = integers_constant(graph, f"{result.name}.shape", [-1, *sizes[1:]])
    reshape = ir.node("Reshape", [block, target])
    reshape.outputs[0].type, reshape.outputs[0].shape = result.type, result.shape
    graph.insert_before(node, [reshape])
    replace(result, reshape.outputs[0])
