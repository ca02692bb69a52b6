"""What all rewrites of a graph do to it: new constants and nodes, values replaced, constants read."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fastserve.export.graph_guards import TOKENS


def constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of ``graph``."""
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(tensor.shape.numpy())))
    graph.register_initializer(value)
    return value


def integers_constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    """A new initializer of ``graph``: int64 [len(numbers)]."""
    return constant(graph, name, ir.tensor(numbers, dtype=ir.DataType.INT64))


def made_by(op_type: str, value: ir.Value | None) -> ir.Node | None:
    """The operation that makes ``value``, if it is an ``op_type``."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads ``old`` read ``new``; an output of the graph keeps its name and what its sizes are called."""
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.replaced"
        new.name, new.shape = name, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def drop_reshapes(graph: ir.Graph) -> None:
    """Where a value was reshaped and got its shape back, take the value."""
    for node in list(graph):
        source = unshaped(node.outputs[0]) if node.op_type == "Reshape" else None
        if source is not None and source.shape is not None and source.shape == node.outputs[0].shape:
            replace(node.outputs[0], source)


def unshaped(value: ir.Value | None) -> ir.Value | None:
    """``value`` before it was reshaped."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Reshape":
        value = node.inputs[0]
    return value


def integers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant; None if it is none."""
    if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.INT64:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def number(value: ir.Value | None) -> float | None:
    """The number that a constant of one element is; None if it is none."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def width(value: ir.Value | None) -> int | None:
    """The size of the last axis, if it is known."""
    size = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def is_rows(value: ir.Value | None) -> bool:
    """Whether ``value`` is [num_tokens, n]."""
    if value is None or value.shape is None or len(value.shape) != 2 or not isinstance(value.shape[1], int):
        return False
    return isinstance(value.shape[0], ir.SymbolicDim) and value.shape[0].value == TOKENS


def both_orders(node: ir.Node | None) -> list[tuple[ir.Value, ir.Value]]:
    """The two operands of an operation in which they may be exchanged, in both orders; nothing if they are not two."""
    operands = [] if node is None else [value for value in node.inputs if value is not None]
    if len(operands) != 2:
        return []
    first, second = operands
    return [(first, second), (second, first)]


def swaps_heads(node: ir.Node | None) -> bool:
    """Whether a Transpose exchanges the first two of three axes."""
    return node is not None and list(node.attributes["perm"].as_ints()) == [1, 0, 2]


def new_node(
    graph: ir.Graph,
    before: ir.Node,
    operator: tuple[str, str],
    inputs: list[ir.Value | None],
    likes: list[ir.Value],
    attributes: Mapping[str, int | float | str] | None = None,
) -> ir.Node:
    """A node of ``operator`` (domain, name) in front of ``before``, with one output of type and shape of each of ``likes``."""
    values = [ir.convenience.convert_attribute(name, value) for name, value in (attributes or {}).items()]
    outputs = [ir.Value(type=like.type, shape=like.shape) for like in likes]
    node = ir.Node(*operator, inputs, values, outputs=outputs, name=f"{before.name}.{operator[1]}")
    graph.insert_before(before, [node])
    graph.opset_imports.setdefault(operator[0], 1)
    return node
