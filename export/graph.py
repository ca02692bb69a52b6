"""From a torch causal language model to the packed ONNX graph of the graph contract (ARCHITECTURE.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim

from fastserve.errors import UnsupportedModel
from fastserve.export import conversion
from fastserve.export.attention import AttentionLayer, AttentionTrace, PagedInputs, attention_replaced
from fastserve.export.experts import experts_replaced
from fastserve.export.targets import Target, free_cache_axes

_SAMPLE_BLOCKS, _SAMPLE_BLOCK_SIZE = 5, 16
"""Sizes of the example caches of a trace; both are dynamic in the graph."""


class PackedDecoder(torch.nn.Module):
    """A causal language model that takes the inputs of the graph contract, in its order, and gives ``logits``."""

    def __init__(self, model: Any, trace: AttentionTrace, domain: str) -> None:
        """``domain``: of the attention operator."""
        super().__init__()
        self.model = model
        self._trace = trace
        self._domain = domain

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
        paging = (cumulative_sequence_length, past_seqlens, block_table, slot_mapping, key_cache, value_cache)
        self._trace.begin(PagedInputs(*paging, domain=self._domain))
        output = self.model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, logits_to_keep=logits_rows
        )
        logits: torch.Tensor = output.logits[0]
        return logits if logits.dtype == torch.float32 else logits.float()


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


def trace_packed(model: Any, layers: list[AttentionLayer], target: Target) -> torch.export.ExportedProgram:
    """Trace ``model`` with its attention replaced. ``layers``: what :func:`~fastserve.export.attention.probe` saw.
    The model's weights are of the ``target``'s type.

    Raises UnsupportedModel when the architecture cannot be traced with free shapes or attends differently than probed.
    """
    trace = AttentionTrace(model.config.model_type)
    by_index = sorted(layers, key=lambda layer: layer.index)
    with attention_replaced(model, trace), experts_replaced(model):
        program = conversion.trace(
            PackedDecoder(model, trace, target.domain),
            _sample_inputs(by_index, target),
            _dynamic_shapes(len(by_index), Dim, target.layouts),
            model.config.model_type,
        )
    if trace.layers != layers:
        raise UnsupportedModel(f"{model.config.model_type}: attention differs between two forward passes")
    return program


def _sample_inputs(layers: list[AttentionLayer], target: Target) -> dict[str, Any]:
    """Two sequences of 3 and 4 tokens, two rows that sample. No two dynamic sizes are equal, none is 0 or 1."""

    def caches(layout: str) -> list[torch.Tensor]:
        return [target.sample_cache(layout, layer, _SAMPLE_BLOCKS, _SAMPLE_BLOCK_SIZE) for layer in layers]

    key_layout, value_layout = target.layouts
    return {
        "input_ids": torch.arange(7),
        "position_ids": torch.tensor([0, 1, 2, 0, 1, 2, 3]),
        "cumulative_sequence_length": torch.tensor([0, 3, 7], dtype=torch.int32),
        "past_seqlens": torch.zeros(2, dtype=torch.int32),
        "block_table": torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]], dtype=torch.int32),
        "slot_mapping": torch.arange(7, dtype=torch.int32),
        "logits_rows": torch.tensor([2, 6]),
        "key_cache": caches(key_layout),
        "value_cache": caches(value_layout),
    }


def _dynamic_shapes(num_layers: int, dimension: Callable[[str], Any], layouts: tuple[str, str]) -> dict[str, Any]:
    """The free dimensions of each parameter of :meth:`PackedDecoder.forward`. ``dimension`` makes one from its name. ``layouts``:
    of the caches."""
    named = {name: dimension(name) for name in ("num_tokens", "num_seqs", "num_blocks", "block_size")}
    num_tokens, num_seqs = named["num_tokens"], named["num_seqs"]
    keys, values = ({axis: named[name] for axis, name in free_cache_axes(layout).items()} for layout in layouts)
    return {
        "input_ids": {0: num_tokens},
        "position_ids": {0: num_tokens},
        "cumulative_sequence_length": {0: dimension("num_seqs_plus_1")},
        "past_seqlens": {0: num_seqs},
        "block_table": {0: num_seqs, 1: dimension("max_blocks")},
        "slot_mapping": {0: num_tokens},
        "logits_rows": {0: dimension("num_rows")},
        "key_cache": [keys] * num_layers,
        "value_cache": [values] * num_layers,
    }


def convert(program: torch.export.ExportedProgram, num_layers: int, target: Target) -> ir.Model:
    """The traced program as a clean ONNX model. Raises UnsupportedModel when an operation has no ONNX form."""
    shapes = _dynamic_shapes(num_layers, str, target.layouts)
    return conversion.convert(program, (input_names(num_layers), ["logits"]), shapes, "decoder")
