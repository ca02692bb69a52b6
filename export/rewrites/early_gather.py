"""Picks the rows a head reads as early as possible, so that the last layer computes nothing for rows that nobody reads.

A classifier reads one row a sequence, a masked language model the few that are masked. What comes after the last attention
works on each row by itself (a guard looks), so it gives the same rows when it is given only those.
"""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites.batch_axis import ELEMENTWISE
from fastserve.export.rewrites.graph_edits import is_rows, replace

_OWN_ROW_OPERATORS = frozenset({"GatedActivation", "QuantizedMatMul", "RowNorm"})


def gather_early(graph: ir.Graph) -> None:
    """Move each ``Gather(value, rows)``, where ``rows`` is an input of the graph, before the operations that made ``value``, as
    far as it can go."""
    for rows in graph.inputs:
        while any(_move(graph, node, rows) for node, _ in list(rows.uses()) if _picks(node, rows)):
            pass
    graph.sort()


def _picks(node: ir.Node, rows: ir.Value) -> bool:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return node.op_type == "Gather" and node.inputs[1] is rows and axis == 0


def _move(graph: ir.Graph, gather: ir.Node, rows: ir.Value) -> bool:
    """One operation back, if nothing but such gathers reads the operation's results."""
    source = None if gather.inputs[0] is None else gather.inputs[0].producer()
    if source is None or not _works_on_rows(source):
        return False
    readers = [node for value in source.outputs for node, _ in value.uses()]
    if any(value.is_graph_output() for value in source.outputs) or not all(_picks(node, rows) for node in readers):
        return False
    inputs = [_picked(graph, value, rows) if value is not None and is_rows(value) else value for value in source.inputs]
    outputs = [_picked_like(value, rows) for value in source.outputs]
    name = f"{source.name}.{rows.name}"
    copy = ir.Node(source.domain, source.op_type, inputs, list(source.attributes.values()), outputs=outputs, name=name)
    graph.append(copy)
    for old, new in zip(source.outputs, outputs, strict=True):
        for reader, _ in list(old.uses()):
            replace(reader.outputs[0], new)
            graph.remove(reader, safe=True)
    graph.remove(source, safe=True)
    return True


def _picked(graph: ir.Graph, value: ir.Value, rows: ir.Value) -> ir.Value:
    """The rows of ``value``; one gather serves all that read them."""
    for node, _ in value.uses():
        if _picks(node, rows) and node.inputs[0] is value:
            return node.outputs[0]
    gather = ir.Node("", "Gather", [value, rows], [ir.AttrInt64("axis", 0)], outputs=[_picked_like(value, rows)])
    graph.append(gather)
    return gather.outputs[0]


def _picked_like(value: ir.Value, rows: ir.Value) -> ir.Value:
    """A value for the rows of ``value``: the same shape but for the number of rows."""
    assert value.shape is not None and rows.shape is not None
    return ir.Value(name=f"{value.name}.{rows.name}", type=value.type, shape=ir.Shape([rows.shape[0], *value.shape[1:]]))


def _works_on_rows(node: ir.Node) -> bool:
    """Whether each row [num_tokens, n] of the results comes from the same row of those operands that have rows; the others must
    be constants."""
    carriers = [value for value in node.inputs if value is not None and is_rows(value)]
    if not carriers or not all(is_rows(value) for value in node.outputs):
        return False
    if any(value.const_value is None for value in node.inputs if value is not None and value not in carriers):
        return False
    if node.op_type in ("LayerNormalization", "Split"):
        return node.attributes["axis"].as_int() in (-1, 1)
    if node.op_type in ("Gemm", "MatMul"):
        return node.inputs[0] in carriers and len(carriers) == 1
    return node.op_type in ELEMENTWISE or (node.domain == DOMAIN and node.op_type in _OWN_ROW_OPERATORS)
