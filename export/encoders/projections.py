"""Products of the flat rows with constant weights: finding them in a graph, cutting and joining them by columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fastserve.export.encoders.batch_axis import constant, integers, integers_constant, made_by, replace
from fastserve.export.graph_guards import TOKENS

FloatArray = npt.NDArray[np.float32]

_NARROWEST = 8
"""Columns below which a product of its own costs more than a copy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Projection:
    """``rows`` [num_tokens, k] times a constant ``weight`` [k, n], plus a constant ``bias`` [n] if any."""

    rows: ir.Value
    weight: FloatArray
    bias: FloatArray | None
    name: str

    @classmethod
    def behind(cls, value: ir.Value | None) -> Projection | None:
        """The projection that ``value`` [num_tokens, n] is, if it is one."""
        node = None if value is None else value.producer()
        bias = None
        if node is not None and node.op_type == "Add":
            constants = [value for value in node.inputs if value is not None and value.const_value is not None]
            others = [value for value in node.inputs if value is not None and value.const_value is None]
            if len(constants) != 1 or len(others) != 1:
                return None
            bias, node = constants[0].const_value, others[0].producer()
        if node is None or node.op_type != "MatMul":
            return None
        rows, weight = node.inputs
        if rows is None or rows.shape is None or len(rows.shape) != 2 or weight is None or weight.const_value is None:
            return None
        return cls(rows, weight.const_value.numpy(), None if bias is None else bias.numpy(), node.name or "")

    def columns(self, start: int, end: int) -> Projection:
        """The projection to columns [start, end)."""
        bias = None if self.bias is None else self.bias[start:end]
        return dataclasses.replace(self, weight=self.weight[:, start:end], bias=bias, name=f"{self.name}.{start}")

    def emit(self, graph: ir.Graph, before: ir.Node) -> ir.Value:
        """New nodes that compute it: [num_tokens, n]."""
        weight = constant(graph, f"{self.name}.weight", ir.tensor(np.ascontiguousarray(self.weight)))
        made = [ir.node("MatMul", [self.rows, weight], name=self.name)]
        if self.bias is not None:
            bias = constant(graph, f"{self.name}.bias", ir.tensor(np.ascontiguousarray(self.bias)))
            made.append(ir.node("Add", [made[0].outputs[0], bias], name=f"{self.name}.add"))
        for node in made:
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape([TOKENS, self.weight.shape[1]])
        graph.insert_before(before, made)
        return made[-1].outputs[0]


def joined(projections: Sequence[Projection], name: str) -> Projection | None:
    """One projection to the columns of all, if they are of the same rows and all or none have a bias."""
    biases = [projection.bias for projection in projections if projection.bias is not None]
    if len({projection.rows for projection in projections}) != 1 or len(biases) not in (0, len(projections)):
        return None
    weight = np.concatenate([projection.weight for projection in projections], axis=1)
    return Projection(projections[0].rows, weight, np.concatenate(biases) if biases else None, name)


def split_projections(graph: ir.Graph) -> None:
    """Where a projection is cut into blocks of columns, make each block by a projection of its own, so that nothing is copied.

    Weights of query, key and value, or of gate and up, come in one piece like that.
    """
    for node in list(graph):
        if node.op_type == "Split":
            _split(graph, node)
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
