"""From a torch encoder with a head to the packed ONNX graph of the graph contract (ARCHITECTURE.md).

A head that reads one row a sequence finds it at index 0 of every row of its batch. So the rows are chosen below the head:
what leaves the encoder is not [1, num_tokens, hidden_size] but [num_seqs, 1, hidden_size], a batch of one-token sequences, and
poolers and heads do what they always do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim

from fastserve.errors import UnsupportedModel
from fastserve.export import conversion
from fastserve.export.attention import AttentionLayer, AttentionTrace, attention_replaced
from fastserve.export.encoders.heads import Rows
from fastserve.export.encoders.packed_attention import PackedInputs, segment_mean
from fastserve.export.graph_guards import ROWS, SEQUENCES, TOKENS


class PackedEncoder(torch.nn.Module):
    """An encoder that takes the inputs of the graph contract and gives its only output."""

    def __init__(self, model: Any, trace: AttentionTrace, rows: Rows) -> None:
        super().__init__()
        self.model = model
        self._trace = trace
        self._rows = rows

    def forward(
        self,
        input_ids: torch.Tensor,  # int64 [num_tokens]
        position_ids: torch.Tensor,  # int64 [num_tokens]
        cumulative_sequence_length: torch.Tensor,  # int32 [num_seqs + 1]
        token_type_ids: torch.Tensor | None = None,  # int64 [num_tokens]
        sequence_rows: torch.Tensor | None = None,  # int64 [num_seqs]
        logits_rows: torch.Tensor | None = None,  # int64 [num_rows]
    ) -> torch.Tensor:
        """float32 [num_seqs, n], [num_tokens, n] or [num_rows, n]."""
        self._trace.begin(PackedInputs(cumulative_sequence_length))

        def select(hidden: torch.Tensor) -> torch.Tensor:  # [1, num_tokens, hidden_size]
            if self._rows is Rows.MEAN:
                return segment_mean(hidden[0], cumulative_sequence_length)[:, None]
            if sequence_rows is not None:
                return torch.nn.functional.embedding(sequence_rows, hidden[0])[:, None]
            return hidden if logits_rows is None else torch.nn.functional.embedding(logits_rows, hidden[0])[None]

        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids[None]}
        with _last_hidden_state(self.model.base_model, select, self._rows):
            return _only_output(self.model(input_ids=input_ids[None], position_ids=position_ids[None], **types), self._rows)


@contextlib.contextmanager
def _last_hidden_state(base: Any, select: Callable[[torch.Tensor], torch.Tensor], rows: Rows) -> Iterator[None]:
    """Let pooler and head read ``select(last hidden state)``. A pooler is part of the base model: it comes after its ``encoder``,
    or reads what the base model gives."""

    def replace_output(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = select(output.last_hidden_state)
        return output

    def replace_argument(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (select(arguments[0]), *arguments[1:])

    encoder, pooler = getattr(base, "encoder", None), getattr(base, "pooler", None)
    if rows is Rows.FIRST and isinstance(encoder, torch.nn.Module):
        handles = [encoder.register_forward_hook(replace_output)]
    else:
        handles = [base.register_forward_hook(replace_output)]
        if rows is Rows.FIRST and isinstance(pooler, torch.nn.Module):
            handles.append(pooler.register_forward_pre_hook(replace_argument))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _only_output(output: Any, rows: Rows) -> torch.Tensor:
    """[rows, n]; of question answering, n is start and end."""
    if "start_logits" in output:
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
    if "logits" not in output:
        embeddings: torch.Tensor = output.last_hidden_state[:, 0]
        return embeddings
    logits: torch.Tensor = output.logits
    return logits if rows in (Rows.FIRST, Rows.MEAN) else logits[0]


def trace_encoder(model: Any, layers: list[AttentionLayer], rows: Rows, *, token_types: bool) -> torch.export.ExportedProgram:
    """``layers``: what :func:`~fastserve.export.attention.probe` saw. ``token_types``: whether the graph takes them.

    Raises UnsupportedModel when the architecture cannot be traced with free shapes or attends differently than probed.
    """
    trace = AttentionTrace(model.config.model_type, causal=False)
    inputs = _sample_inputs(rows, token_types)
    with attention_replaced(model, trace):
        program = conversion.trace(
            PackedEncoder(model, trace, rows), inputs, _dynamic_shapes(inputs, _free), model.config.model_type
        )
    if trace.layers != layers:
        raise UnsupportedModel(f"{model.config.model_type}: attention differs between two forward passes")
    return program


def convert_encoder(program: torch.export.ExportedProgram, rows: Rows, output_name: str, *, token_types: bool) -> ir.Model:
    """The traced program as an ONNX model, as the source computes it. Raises UnsupportedModel when it has no ONNX form."""
    inputs = _sample_inputs(rows, token_types)
    model = conversion.convert(program, (list(inputs), [output_name]), _dynamic_shapes(inputs, str), "encoder")
    (output,) = model.graph.outputs
    assert output.shape is not None
    output.shape = ir.Shape([_OUTPUT_ROWS[rows], output.shape[-1]])
    return model


def _sample_inputs(rows: Rows, token_types: bool) -> dict[str, torch.Tensor]:
    """Three sequences of 2, 3 and 4 tokens. No size is below that of :func:`_free`."""
    inputs = {
        "input_ids": torch.arange(9),
        "position_ids": torch.tensor([2, 3, 2, 3, 4, 2, 3, 4, 5]),
        "cumulative_sequence_length": torch.tensor([0, 2, 5, 9], dtype=torch.int32),
    }
    if token_types:
        inputs["token_type_ids"] = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 1])
    if rows is Rows.FIRST:
        inputs["sequence_rows"] = torch.tensor([0, 2, 5])
    if rows is Rows.MARKED:
        inputs["logits_rows"] = torch.tensor([1, 6, 7])
    return inputs


def _free(name: str) -> Any:
    """A dimension that, even less one, is never taken for the constants 0 and 1. It holds for the trace only: in the graph a
    dimension has a name and no bounds."""
    return Dim(name, min=3)


_OUTPUT_ROWS = {Rows.ALL: TOKENS, Rows.MARKED: ROWS, Rows.FIRST: SEQUENCES, Rows.MEAN: SEQUENCES}
_DIMENSIONS = {"cumulative_sequence_length": "num_seqs_plus_1", "sequence_rows": SEQUENCES, "logits_rows": ROWS}


def _dynamic_shapes(inputs: dict[str, torch.Tensor], dimension: Callable[[str], Any]) -> dict[str, Any]:
    """The free dimension of each input. ``dimension`` makes one from its name."""
    num_tokens = dimension(TOKENS)
    return {name: {0: dimension(_DIMENSIONS[name]) if name in _DIMENSIONS else num_tokens} for name in inputs}
