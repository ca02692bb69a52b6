"""Takes the batch axis of 1 out of a packed graph: what the source computes on [1, num_tokens, n] is computed on [num_tokens, n].

A product with a bias is then one operation to ONNX Runtime, and the many reshapes around attention are gone.
"""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.rewrites.graph_edits import integers, integers_constant, replace

ELEMENTWISE = frozenset(
    {
        *("Add", "Cast", "Clip", "Cos", "Div", "Erf", "Gelu", "Mul", "Neg", "Pow", "Reciprocal"),
        *("Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh"),
    }
)
"""Operations that compute each element of their result from one element of each operand."""

_AXES_INPUT = {"ReduceMean": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
"""Operations along axes that are an operand: which one."""
_ALONG_AXES = frozenset({"Concat", "LayerNormalization", "Split", *_AXES_INPUT})
"""Operations that leave the first axis alone if it is none of their axes."""


def drop_batch_axis(graph: ir.Graph) -> None:
    """Rewrite ``graph``; what was replaced stays behind unused. Operations that cannot do without the axis get it back."""
    rewrite = _Rewrite(graph)
    for node in list(graph):
        rewrite.visit(node)


class _Rewrite:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._flat: dict[ir.Value, ir.Value] = {}
        """A value whose first axis is 1 -> the same without that axis."""
        self._restored: dict[ir.Value, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Nodes come in the order of computation."""
        if node.op_type == "Unsqueeze" and integers(node.inputs[1]) == [0]:
            inner = self._whole(node, node.inputs[0])
            assert inner is not None
            self._flat[node.outputs[0]] = inner
        elif (same := self._undone(node)) is not None:
            replace(node.outputs[0], same)
        elif node.op_type == "Reshape" and _target(node) is not None:
            self._reshape(node)
        elif self._works_without(node):
            self._copy(node)
        else:
            for index, value in enumerate(node.inputs):
                node.replace_input_with(index, self._whole(node, value))

    def _whole(self, before: ir.Node, value: ir.Value | None) -> ir.Value | None:
        """``value`` with all its axes, also if only its flat form is computed."""
        if value is None or value not in self._flat:
            return value
        if value not in self._restored:
            self._restored[value] = unsqueeze = self._insert(
                before, "Unsqueeze", [self._flat[value], integers_constant(self._graph, f"{value.name}.batch_axis", [0])]
            )
            unsqueeze.shape = value.shape
        return self._restored[value]

    def _undone(self, node: ir.Node) -> ir.Value | None:
        """What ``node`` takes back out of an axis of 1: x in Gather(Unsqueeze(x, a), 0, axis=a)."""
        if node.op_type != "Gather" or node.inputs[0] is None or _scalar(node.inputs[1]) != 0:
            return None
        if _axis(node) == 0 and node.inputs[0] in self._flat:
            return self._flat[node.inputs[0]]
        source = node.inputs[0].producer()
        if source is not None and source.op_type == "Unsqueeze" and integers(source.inputs[1]) == [_axis(node)]:
            return source.inputs[0]
        return None

    def _reshape(self, node: ir.Node) -> None:
        target, (result,), data = _target(node), node.outputs, node.inputs[0]
        assert target is not None and data is not None
        data = self._flat.get(data, data)
        if result.shape is None or len(result.shape) < 2 or result.shape[0] != 1:
            node.replace_input_with(0, data)
        elif data.shape == ir.Shape(result.shape[1:]):
            self._flat[result] = data
        else:
            self._flat[result] = flat = self._insert(
                node, "Reshape", [data, integers_constant(self._graph, f"{result.name}.shape", target[1:])]
            )
            flat.shape = ir.Shape(result.shape[1:])

    def _works_without(self, node: ir.Node) -> bool:
        """Whether the operation gives the same, less the first axis, when its operands come without theirs."""
        if any(value.shape is None for value in (*node.inputs, *node.outputs) if value is not None):
            return False
        flat = [value in self._flat for value in node.inputs]
        ranks = [0 if value is None or value.shape is None else len(value.shape) for value in (*node.inputs, *node.outputs)]
        if node.op_type in ELEMENTWISE:
            ones = [value is not None and value.shape is not None and value.shape[:1] == (1,) for value in node.inputs]
            return any(flat) and all(a or b or rank < ranks[-1] for a, b, rank in zip(flat, ones, ranks, strict=False))
        if node.op_type in _ALONG_AXES:
            axes, rank = _axes(node), max(ranks[0], ranks[-1])
            return axes is not None and all(axis % rank for axis in axes) and all(flat if node.op_type == "Concat" else flat[:1])
        if node.op_type == "MatMul":
            return flat == [True, False] and ranks[0] > 2 and ranks[1] == 2
        if node.op_type == "Transpose":
            return flat[0] and "perm" in node.attributes and node.attributes["perm"].as_ints()[0] == 0
        if node.op_type == "Gather":
            return (flat == [False, True] and _axis(node) == 0) or (flat == [True, False] and _axis(node) > 0)
        return False

    def _copy(self, node: ir.Node) -> None:
        inputs = [value if value is None else self._flat.get(value, value) for value in node.inputs]
        if node.op_type in ELEMENTWISE:
            inputs = [self._squeezed(node, value) if value is not None else None for value in inputs]
        attributes = dict(node.attributes)
        if (place := _AXES_INPUT.get(node.op_type)) is not None:
            shifted = [_shifted(axis) for axis in integers(node.inputs[place]) or ()]
            inputs[place] = integers_constant(self._graph, f"{node.outputs[0].name}.axes", shifted)
        elif node.op_type in _ALONG_AXES or (node.op_type == "Gather" and _axis(node) > 0):
            attributes["axis"] = ir.AttrInt64("axis", _shifted(_axis(node)))
        elif node.op_type == "Transpose":
            attributes["perm"] = ir.AttrInt64s("perm", [axis - 1 for axis in attributes["perm"].as_ints()[1:]])
        outputs = [
            ir.Value(name=f"{value.name}.flat", type=value.type, shape=None if value.shape is None else ir.Shape(value.shape[1:]))
            for value in node.outputs
        ]
        copy = ir.Node(node.domain, node.op_type, inputs, list(attributes.values()), outputs=outputs, name=f"{node.name}.flat")
        self._graph.insert_before(node, [copy])
        self._flat |= dict(zip(node.outputs, outputs, strict=True))

    def _squeezed(self, reader: ir.Node, value: ir.Value) -> ir.Value:
        """An operand that was computed with the batch axis, as long as the result, without it."""
        rank, longest = (len(found.shape or ()) for found in (value, reader.outputs[0]))
        if rank < longest:
            return value
        self._flat[value] = flat = self._insert(
            reader, "Squeeze", [value, integers_constant(self._graph, f"{value.name}.first_axis", [0])]
        )
        flat.shape = ir.Shape((value.shape or ())[1:])
        return flat

    def _insert(self, before: ir.Node, op_type: str, inputs: list[ir.Value]) -> ir.Value:
        node = ir.node(op_type, inputs)
        self._graph.insert_before(before, [node])
        node.outputs[0].type = inputs[0].type
        return node.outputs[0]


def _scalar(value: ir.Value | None) -> int | None:
    numbers = integers(value)
    return numbers[0] if numbers is not None and value is not None and value.shape is not None and len(value.shape) == 0 else None


def _target(node: ir.Node) -> list[int] | None:
    """The shape a Reshape makes, if it is constant and copies no axis of its operand."""
    target = integers(node.inputs[1])
    return None if target is None or 0 in target else target


def _axis(node: ir.Node) -> int:
    default = -1 if node.op_type == "LayerNormalization" else 0
    return node.attributes["axis"].as_int() if "axis" in node.attributes else default


def _axes(node: ir.Node) -> list[int] | None:
    """The axes an operation of :data:`_ALONG_AXES` works along; None if they are not constant."""
    place = _AXES_INPUT.get(node.op_type)
    if place is None:
        return [_axis(node)]
    return integers(node.inputs[place]) if place < len(node.inputs) else None


def _shifted(axis: int) -> int:
    """What an axis is called when the first one is gone."""
    return axis if axis < 0 else axis - 1
