"""The rows that sample, picked by the one operation that does it: the source swaps axes, picks and swaps back."""

from __future__ import annotations

import onnx_ir as ir

from fastserve.export.rewrites.graph_edits import integers, made_by, replace


def pick_rows_directly(graph: ir.Graph) -> None:
    """``swap(GatherND(swap(x), rows))`` of x [1, num_tokens, n] as ``Gather(x, rows)`` along its axis of tokens."""
    for node in [node for node in graph if node.op_type == "GatherND"]:
        before = made_by("Transpose", node.inputs[0])
        rows = made_by("Unsqueeze", node.inputs[1])
        after = [reader for reader, _ in node.outputs[0].uses()]
        if before is None or rows is None or integers(rows.inputs[1]) not in ([-1], [1]) or len(after) != 1:
            continue
        if not _swaps_first_axes(before) or after[0].op_type != "Transpose" or not _swaps_first_axes(after[0]):
            continue
        if "batch_dims" in node.attributes and node.attributes["batch_dims"].as_int() != 0:
            continue
        gather = ir.node("Gather", [before.inputs[0], rows.inputs[0]], {"axis": 1})
        result = after[0].outputs[0]
        gather.outputs[0].type, gather.outputs[0].shape = result.type, result.shape
        graph.insert_before(node, [gather])
        replace(result, gather.outputs[0])


def _swaps_first_axes(node: ir.Node) -> bool:
    return list(node.attributes["perm"].as_ints()) == [1, 0, 2]
