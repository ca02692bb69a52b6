"""From a torch causal language model to the packed ONNX graph of the graph contract (ARCHITECTURE.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import AttentionLayer, AttentionTrace, PagedInputs, attention_replaced

OPSET = 21

_SAMPLE_BLOCKS, _SAMPLE_BLOCK_SIZE = 5, 16
"""Sizes of the example caches of a trace; both are dynamic in the graph."""


class PackedDecoder(torch.nn.Module):
    """A causal language model that takes the inputs of the graph contract, in its order, and gives ``logits``."""

    def __init__(self, model: Any, trace: AttentionTrace) -> None:
        super().__init__()
        self.model = model
        self._trace = trace

    def forward(  # the graph contract's inputs, one parameter each
        self,
        input_ids: torch.Tensor,  # int64 [num_tokens]
        position_ids: torch.Tensor,  # int64 [num_tokens]
        cumulative_sequence_length: torch.Tensor,  # int32 [num_seqs + 1]
        past_seqlens: torch.Tensor,  # int32 [num_seqs]
        block_table: torch.Tensor,  # int32 [num_seqs, max_blocks]
        slot_mapping: torch.Tensor,  # int32 [num_tokens]
        logits_rows: torch.Tensor,  # int64 [num_rows]
        key_cache: list[torch.Tensor],
        value_cache: list[torch.Tensor],
    ) -> torch.Tensor:
        """Logits float32 [num_rows, vocab_size]. Rows are gathered before the LM head."""
        self._trace.begin(
            PagedInputs(cumulative_sequence_length, past_seqlens, block_table, slot_mapping, key_cache, value_cache)
        )
        output = self.model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, logits_to_keep=logits_rows
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def input_names(num_layers: int) -> list[str]:
    """Graph input names in the order of :meth:`PackedDecoder.forward`."""
    names = [
        "input_ids",
        "position_ids",
        "cumulative_sequence_length",
        "past_seqlens",
        "block_table",
        "slot_mapping",
        "logits_rows",
    ]
    return names + [f"{cache}.{i}" for cache in ("key_cache", "value_cache") for i in range(num_layers)]


def trace_packed(model: Any, layers: list[AttentionLayer]) -> torch.export.ExportedProgram:
    """Trace ``model`` with its attention replaced. ``layers``: what :func:`~fastserve.export.attention.probe` saw.

    Raises UnsupportedModel when the architecture cannot be traced with free shapes or attends differently than probed.
    """
    trace = AttentionTrace(model.config.model_type)
    by_index = sorted(layers, key=lambda layer: layer.index)
    with attention_replaced(model, trace), torch.no_grad():
        try:
            program = torch.export.export(
                PackedDecoder(model, trace).eval(),
                _sample_inputs(by_index),
                dynamic_shapes=_dynamic_shapes(len(by_index), Dim),
                strict=False,
            )
        except UnsupportedModel:
            raise
        except Exception as error:  # torch.export has no common base class for what a model may provoke
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModel(f"{model.config.model_type}: torch.export cannot trace it: {reason[:300]}") from error
    if trace.layers != layers:
        raise UnsupportedModel(f"{model.config.model_type}: attention differs between two forward passes")
    return program


def _sample_inputs(layers: list[AttentionLayer]) -> tuple[Any, ...]:
    """Two sequences of 3 and 4 tokens, two rows that sample. No two dynamic sizes are equal, none is 0 or 1."""

    def cache(layer: AttentionLayer, *inner: int) -> torch.Tensor:
        return torch.zeros(_SAMPLE_BLOCKS, layer.kv_num_heads, *inner)

    return (
        torch.arange(7),
        torch.tensor([0, 1, 2, 0, 1, 2, 3]),
        torch.tensor([0, 3, 7], dtype=torch.int32),
        torch.zeros(2, dtype=torch.int32),
        torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]], dtype=torch.int32),
        torch.arange(7, dtype=torch.int32),
        torch.tensor([2, 6]),
        [cache(layer, layer.head_size, _SAMPLE_BLOCK_SIZE) for layer in layers],
        [cache(layer, _SAMPLE_BLOCK_SIZE, layer.head_size) for layer in layers],
    )


def _dynamic_shapes(num_layers: int, dimension: Callable[[str], Any]) -> tuple[Any, ...]:
    """The free dimensions of each parameter of :meth:`PackedDecoder.forward`. ``dimension`` makes one from its name."""
    num_tokens, num_seqs, num_blocks, block_size = map(dimension, ("num_tokens", "num_seqs", "num_blocks", "block_size"))
    return (
        {0: num_tokens},
        {0: num_tokens},
        {0: dimension("num_seqs_plus_1")},
        {0: num_seqs},
        {0: num_seqs, 1: dimension("max_blocks")},
        {0: num_tokens},
        {0: dimension("num_rows")},
        [{0: num_blocks, 3: block_size}] * num_layers,
        [{0: num_blocks, 2: block_size}] * num_layers,
    )


def convert(program: torch.export.ExportedProgram, num_layers: int) -> ir.Model:
    """The traced program as a clean ONNX model: contract names, no source paths, weights shared where the source ties them.

    Raises UnsupportedModel when an operation has no ONNX form.
    """
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=input_names(num_layers),
            output_names=["logits"],
            dynamic_shapes=_dynamic_shapes(num_layers, str),  # a traced program has forgotten the names
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error  # the error itself is a page of advice
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UnsupportedModel(f"it cannot be converted to ONNX: {reason[:300]}") from error
    assert converted is not None  # only None without dynamo
    model: ir.Model = converted.model
    multiply_by_shared_weights(model.graph)
    _strip_metadata(model)
    return model


def multiply_by_shared_weights(graph: ir.Graph) -> None:
    """Turn ``MatMul(x, Transpose(weight))`` into ``Gemm(x, weight, transB=1)`` where ``weight`` is stored untransposed.

    That is the tied LM head: the embedding reads the same initializer. ONNX Runtime would fold the transpose into a second
    private copy of the largest tensor of a small model.
    """
    for transpose in [node for node in graph if node.op_type == "Transpose"]:
        weight = transpose.inputs[0]
        if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
            continue
        for product, index in list(transpose.outputs[0].uses()):
            rows = product.inputs[0]
            if (
                product.op_type == "MatMul"
                and index == 1
                and rows is not None
                and rows.shape is not None
                and len(rows.shape) == 3
            ):
                _replace_by_gemm(graph, product, rows, weight)
        if not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)


def _replace_by_gemm(graph: ir.Graph, product: ir.Node, rows: ir.Value, weight: ir.Value) -> None:
    assert weight.shape is not None and rows.shape is not None
    width = weight.shape[1]
    assert isinstance(width, int)
    name = product.outputs[0].name
    flat_shape = ir.Value(name=f"{name}.flat_shape", const_value=ir.tensor([-1, width], name=f"{name}.flat_shape"))
    axis = ir.Value(name=f"{name}.batch_axis", const_value=ir.tensor([0], name=f"{name}.batch_axis"))
    graph.register_initializer(flat_shape)
    graph.register_initializer(axis)
    flat = ir.node("Reshape", [rows, flat_shape])
    gemm = ir.node("Gemm", [flat.outputs[0], weight], {"transB": 1})
    batched = ir.node("Unsqueeze", [gemm.outputs[0], axis])
    for node, shape in (
        (flat, (rows.shape[1], weight.shape[1])),
        (gemm, (rows.shape[1], weight.shape[0])),
        (batched, (1, rows.shape[1], weight.shape[0])),
    ):
        node.outputs[0].shape = ir.Shape(shape)
        node.outputs[0].type = rows.type
    graph.insert_before(product, [flat, gemm, batched])
    product.outputs[0].replace_all_uses_with(batched.outputs[0])
    graph.remove(product, safe=True)


def _strip_metadata(model: ir.Model) -> None:
    """Drop what tells about the exporting machine (source paths in stack traces) and only makes the file large."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    model.graph.name = "decoder"
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
