"""Import of ready-made ONNX encoders: check, copy, prove that sequences may share a run, measure, publish.

The graph stays as it is. It takes padded batches, so it is slower than one of ``fastserve export`` from the model it was made
of; but it is served.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fastserve
from fastserve.config import ENCODER_TASKS
from fastserve.errors import InvalidRequest
from fastserve.export.description import write_tokenizer
from fastserve.export.encoders.batch_size import EVEN_SENTENCES, Throughputs, measure
from fastserve.export.encoders.export import check_served, write_encoder_config
from fastserve.export.encoders.settings import EncoderSettings
from fastserve.export.options import ExportOptions, ExportResult, Progress, Stage, model_name_from, no_progress
from fastserve.export.padded.graph import GRAPH_FILE, ImportedGraph, copy_graph, read_graph
from fastserve.export.padded.outputs import choose_outputs, outputs_of
from fastserve.export.padded.proof import PaddingProof, prove_padding
from fastserve.export.padded.settings import GraphModel, model_of, padded_settings
from fastserve.export.padded.source import OnnxSource, find_onnx, load_onnx_tokenizer
from fastserve.export.publish import check_target, has_config, staged_version
from fastserve.export.quiet import quiet_libraries
from fastserve.export.source import LoadedModel
from fastserve.export.stages import StageClock, readable_os_errors
from fastserve.export.text_proof import prove_text
from fastserve.manifest import GraphSpec, ModelManifest, ModelSpec, TensorSpec, hash_files
from fastserve.worker.encoder_runner import ROLE
from fastserve.worker.padded_encoder_runner import ALONE, PADDED, PaddedEncoderRunner


@dataclasses.dataclass(frozen=True, slots=True)
class _Checked:
    """What is imported, before anything was written."""

    source: OnnxSource
    graph: ImportedGraph
    outputs: tuple[TensorSpec, ...]
    tokenizer: Any
    model: GraphModel
    settings: EncoderSettings


def import_onnx(source: str, options: ExportOptions, progress: Progress = no_progress) -> ExportResult:
    """Import ``source``, an ONNX file or a folder with one, into the model repository ``options.output``.

    Nothing appears there unless every check passes. Raises ModelNotFound, UnsupportedModel, ProofFailed, InvalidRequest or
    ToolError.
    """
    if options.task not in ENCODER_TASKS:
        raise InvalidRequest("task", options.task, f"for an ONNX file, {' or '.join(ENCODER_TASKS)}")
    if options.dtype != "fp32":
        raise InvalidRequest("dtype", options.dtype, "none for an ONNX file: its weights stay as they are")
    with readable_os_errors():
        return _import(source, options, progress)


def _import(source: str, options: ExportOptions, progress: Progress) -> ExportResult:
    found = find_onnx(source)
    options = dataclasses.replace(options, name=options.name or model_name_from(found.label))
    assert options.name is not None
    target = check_target(options, options.name)
    clock = StageClock(progress)
    with quiet_libraries():
        clock.begin(Stage.LOAD)
        checked = _check(found, options)
        with staged_version(options, options.name) as directory:
            clock.begin(Stage.WRITE)
            manifest = _write(checked, directory, options)
            clock.begin(Stage.PROVE)
            proof = prove_padding(directory, manifest)
            spec = dataclasses.replace(checked.settings.spec, batching=proof.batching)
            manifest = dataclasses.replace(manifest, encoder=spec, proof=proof.measures)
            manifest.save(directory)
            check_served(directory)
            if not has_config(target):
                clock.begin(Stage.MEASURE)
                write_encoder_config(directory, manifest.task, _measured(directory, manifest))
    return ExportResult(target, manifest, clock.end(), (*checked.settings.notes, *_notes(checked, proof)))


def _check(source: OnnxSource, options: ExportOptions) -> _Checked:
    graph = read_graph(source.graph)
    tokenizer = load_onnx_tokenizer(source.files)
    model = model_of(source.files, tokenizer, options)
    outputs = choose_outputs(source.graph, outputs_of(source.graph, graph.inputs), options.task)
    settings = padded_settings(LoadedModel(source.files, model, tokenizer), options, outputs)
    return _Checked(source, graph, outputs, tokenizer, model, settings)


def _write(checked: _Checked, directory: Path, options: ExportOptions) -> ModelManifest:
    """Everything but config.pbtxt and the manifest, which is returned and not proven yet."""
    graph, model = checked.graph, checked.model
    copy_graph(checked.source.graph, graph, directory)
    tokenizer = write_tokenizer(checked.tokenizer, model, directory)
    prove_text(checked.tokenizer, tokenizer, directory)
    return ModelManifest(
        task=options.task,
        model=ModelSpec(
            name=options.name or checked.source.label,
            source=checked.source.label,
            model_type=model.config.model_type,
            dtype=graph.dtype,
            num_parameters=graph.num_parameters,
            vocab_size=model.vocab_size,
            max_model_len=model.longest,
        ),
        graphs={ROLE: GraphSpec({"none": GRAPH_FILE}, graph.inputs, checked.outputs)},
        tokenizer=tokenizer,
        cache=None,
        position_offset=0,
        generation={},
        files=hash_files(directory),
        proof={},
        fastserve_version=fastserve.__version__,
        encoder=dataclasses.replace(checked.settings.spec, batching=ALONE),
    )


def _measured(directory: Path, manifest: ModelManifest) -> Throughputs:
    assert manifest.encoder is not None
    if manifest.encoder.batching != PADDED:
        return {}
    return measure(PaddedEncoderRunner(directory, manifest), manifest, lengths=EVEN_SENTENCES)


def _notes(checked: _Checked, proof: PaddingProof) -> list[str]:
    found = []
    if not checked.tokenizer.num_special_tokens_to_add(pair=False):
        found.append("the tokenizer puts no special tokens around a text; most encoders want some (see its post_processor)")
    if proof.batching == ALONE:
        found.append(
            f"one sequence a run: {_why_alone(checked.graph, proof)}. Sharing runs would make short sentences about "
            f"{proof.gain:.1f} times as fast; for that, export the model the graph was made from"
        )
    return found


def _why_alone(graph: ImportedGraph, proof: PaddingProof) -> str:
    difference = f"(difference {proof.difference:.2g}, outputs' deviation {proof.measures['output_scale']:.2g})"
    if graph.mixing_operation is not None:
        return (
            f"the graph rounds numbers by one scale for the whole batch ({graph.mixing_operation}), so an answer would depend on "
            f"its neighbours {difference}"
        )
    if "attention_mask" not in {tensor.name for tensor in graph.inputs}:
        return f"the graph takes no attention_mask, so it would read padding as text {difference}"
    return f"the graph's outputs for a sequence change when it is padded, in spite of its attention_mask {difference}"
