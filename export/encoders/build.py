"""From a planned encoder to its finished ONNX graph."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from fastserve.errors import UnsupportedModel
from fastserve.export.activations import use_single_operations
from fastserve.export.encoders.graph import convert_encoder, trace_encoder
from fastserve.export.encoders.heads import HEADS
from fastserve.export.encoders.inputs import keep_first_type
from fastserve.export.encoders.packed_attention import ATTENTION
from fastserve.export.encoders.plan import EncoderPlan
from fastserve.export.encoders.rewrites import optimize
from fastserve.export.graph_guards import ROWS, SEQUENCES, check_attention, check_tokens
from fastserve.export.options import ExportOptions, Stage
from fastserve.export.rewrites.quantization import quantize_layers
from fastserve.export.rotary import freeze_frequencies
from fastserve.export.stages import StageClock


def build_graph(model: Any, plan: EncoderPlan, options: ExportOptions, clock: StageClock) -> ir.Model:
    """``model``: the source, which is changed on the way: what is compared with it must have been computed before.

    Raises UnsupportedModel for what cannot be traced, converted or represented.
    """
    freeze_frequencies(model)
    use_single_operations(model)
    if not plan.token_types:
        keep_first_type(model)
    clock.begin(Stage.TRACE)
    program = trace_encoder(model, plan.layers, plan.rows, token_types=plan.token_types)
    clock.begin(Stage.CONVERT)
    graph_model = convert_encoder(program, plan.rows, HEADS[options.task].output_name, token_types=plan.token_types)
    check_tokens(graph_model.graph, ROWS if plan.spec.output == "row" else SEQUENCES)
    optimize(graph_model, plan.longest)
    check_attention(graph_model.graph, ATTENTION, len(plan.layers))
    _check_columns(graph_model.graph, model, plan, options.task)
    if options.dtype == "int8":
        quantize_layers(graph_model.graph)
    return graph_model


def _check_columns(graph: ir.Graph, model: Any, plan: EncoderPlan, task: str) -> None:
    """The output must have a column for each label, for start and end of an answer, or for each token of the vocabulary."""
    (output,) = graph.outputs
    columns = output.shape[1] if output.shape is not None else None
    wanted = {
        "question-answering": 2,
        "fill-mask": model.get_input_embeddings().weight.shape[0],
        "feature-extraction": columns,
    }.get(task, len(plan.spec.labels))
    if columns != wanted:
        raise UnsupportedModel(f"{model.config.model_type}: its head gives {columns} columns, {task} needs {wanted}")
