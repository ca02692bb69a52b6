"""Checks on the finished ONNX graph: the right attention nodes, and nothing else that mixes tokens.

In a packed batch every token row belongs to some sequence, and only attention knows to which. Any other operation that
looks along the token axis (a running sum, a reduction, a shift, a score matrix) would leak between requests.
"""

from __future__ import annotations

import onnx_ir as ir

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import DOMAIN, OPERATOR

TOKENS, ROWS = "num_tokens", "num_rows"
SEQUENCES = "num_seqs"

_SEQUENTIAL = frozenset(
    {"Conv", "ConvTranspose", "CumSum", "GRU", "LSTM", "RNN", "Scan", "Loop", "Range", "AveragePool", "MaxPool"}
)
"""Operations that walk along an axis, or make positions out of thin air."""

_ALONG_AXIS = frozenset(
    {"Softmax", "LogSoftmax", "LayerNormalization", "Slice", "Split", "Concat", "Pad", "TopK", "ReverseSequence"}
)
"""Operations whose axis must not be the token axis."""

_ROW_PICKERS = frozenset({"Gather", "GatherElements", "GatherND"})
"""Operations that may take rows from the token axis, if those are the sampled rows."""

_SIZES = frozenset({"Shape", "Size"})


def check_graph(graph: ir.Graph, num_layers: int, domain: str = DOMAIN) -> None:
    """Check a decoder's graph. ``domain``: of its attention operator. Raises UnsupportedModel naming the node that breaks the
    contract."""
    check_attention(graph, OPERATOR, num_layers, domain)
    check_tokens(graph, domain=domain)


def check_attention(graph: ir.Graph, operator: str, num_layers: int, domain: str = DOMAIN) -> None:
    """Every attention layer must be a node of ``operator``, and every input must be used. Raises UnsupportedModel."""
    attention = [node for node in graph if (node.domain, node.op_type) == (domain, operator)]
    if len(attention) != num_layers:
        raise UnsupportedModel(f"the graph has {len(attention)} {operator} nodes for {num_layers} attention layers")
    for value in graph.inputs:
        if not value.uses():
            raise UnsupportedModel(f"the graph does not use its input {value.name}; the model computes that by itself")


def check_tokens(graph: ir.Graph, rows: str = ROWS, domain: str = DOMAIN) -> None:
    """No node but those of ``domain`` may look along the token axis. ``rows``: size of the selection that may be picked from it.

    Raises UnsupportedModel naming the node.
    """
    for node in graph:
        if node.domain == domain:
            continue
        if reason := mixes_tokens(node, rows):
            raise UnsupportedModel(f"{node.op_type} ({node.outputs[0].name}) {reason}; a request would depend on its neighbours")


def mixes_tokens(node: ir.Node, rows: str = ROWS) -> str | None:
    """Why ``node`` looks along the token axis, as far as shapes tell; None if it does not. ``rows``: as :func:`check_tokens`."""
    if node.op_type in _SEQUENTIAL:
        return "walks along an axis"
    for value in node.outputs:
        if len(_token_axes(value)) > 1:
            return "relates every token of the batch to every other"
    carriers = [value for value in node.inputs if value is not None and _token_axes(value)]
    if not carriers or node.op_type in _SIZES:
        return None
    if any(value.shape is None for value in node.outputs):
        return "gives a result of unknown shape"
    if node.op_type in _ROW_PICKERS:
        return "picks tokens that are not the wanted ones" if _picks_other_rows(node, rows) else None
    if node.op_type in _ALONG_AXIS and any(_works_along_tokens(node, value) for value in carriers):
        return "works along the token axis"
    if all(not _mentions_tokens(value) for value in node.outputs):
        return "sums up over the token axis"
    return None


def _picks_other_rows(node: ir.Node, rows: str) -> bool:
    """Whether it takes from the token axis of its first operand something that is not shaped like ``rows``."""
    data = node.inputs[0]
    if data is None or not (taken_from := _token_axes(data)):
        return False
    if node.op_type != "GatherND" and data.shape is not None:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if axis % len(data.shape) not in taken_from:
            return not _token_axes(node.outputs[0])
    sizes = {str(size.value) for size in node.outputs[0].shape or () if isinstance(size, ir.SymbolicDim)}
    return sizes != {rows}


def _token_axes(value: ir.Value) -> list[int]:
    return [axis for axis, size in enumerate(value.shape or ()) if isinstance(size, ir.SymbolicDim) and size.value == TOKENS]


def _mentions_tokens(value: ir.Value) -> bool:
    return any(isinstance(size, ir.SymbolicDim) and TOKENS in str(size.value) for size in value.shape or ())


def _works_along_tokens(node: ir.Node, value: ir.Value) -> bool:
    """Whether the result's token axis differs from the operand's, or the ``axis`` attribute is the token axis."""
    assert value.shape is not None
    if "axis" in node.attributes:
        axis = node.attributes["axis"].as_int()
        return axis % len(value.shape) in _token_axes(value)
    kept = [size for out in node.outputs for size in out.shape or () if isinstance(size, ir.SymbolicDim) and size.value == TOKENS]
    return not kept
