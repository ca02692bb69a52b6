"""Export of encoders: load, plan, trace, convert, write, prove, measure, publish."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import onnx_ir as ir

import fastserve
from fastserve.config import EncoderConfig
from fastserve.errors import ManifestError, UnsupportedModel
from fastserve.export.config_pbtxt import render_encoder_config_pbtxt
from fastserve.export.description import graph_spec, write_tokenizer
from fastserve.export.encoders.batch_size import Throughputs, best_size, measure
from fastserve.export.encoders.build import build_graph
from fastserve.export.encoders.guards import check_encoder_config
from fastserve.export.encoders.loading import load_encoder
from fastserve.export.encoders.plan import EncoderPlan, plan_encoder
from fastserve.export.encoders.proof import EncoderReference, encoder_reference, prove_encoder
from fastserve.export.onnx_files import write_graph
from fastserve.export.options import (
    CONFIG_FILE,
    ExportOptions,
    ExportResult,
    Progress,
    Stage,
    model_name_from,
    no_progress,
)
from fastserve.export.publish import check_target, has_config, staged_version
from fastserve.export.quiet import quiet_libraries
from fastserve.export.rotary import context_limit
from fastserve.export.source import LoadedModel, load_config, resolve
from fastserve.export.stages import StageClock, readable_os_errors
from fastserve.export.text_proof import prove_pairs, prove_text
from fastserve.manifest import GraphSpec, ModelManifest, ModelSpec, TokenizerSpec, hash_files
from fastserve.tasks.encoding_task import make_task
from fastserve.text.tokenizer import Tokenizer
from fastserve.worker.encoder_runner import ROLE, EncoderRunner

GRAPH_FILE = "model.onnx"


def export_encoder(source: str, options: ExportOptions, progress: Progress = no_progress) -> ExportResult:
    """Export ``source`` (a folder or a hub id) for one of the encoder tasks into the model repository ``options.output``.

    Nothing appears there unless every guard and the proof pass. Raises ModelNotFound, UnsupportedModel, ProofFailed,
    InvalidRequest or ToolError.
    """
    with readable_os_errors():
        return _export(source, options, progress)


def _export(source: str, options: ExportOptions, progress: Progress) -> ExportResult:
    found = resolve(source)
    options = dataclasses.replace(options, name=options.name or model_name_from(found.label))
    assert options.name is not None
    target = check_target(options, options.name)
    clock = StageClock(progress)
    with quiet_libraries():
        clock.begin(Stage.LOAD)
        config = load_config(found)
        check_encoder_config(config, options.task)
        context_limit(config)  # refuses what it cannot bound before the weights are read
        loaded = [load_encoder(found, config, options.task)]
        with staged_version(options, options.name) as directory:
            manifest, reference, notes = _write(loaded, directory, options, clock)
            gc.collect()  # the source model is in reference cycles
            clock.begin(Stage.PROVE)
            manifest = dataclasses.replace(manifest, proof=prove_encoder(directory, manifest, reference))
            manifest.save(directory)
            check_served(directory)
            if not has_config(target):
                clock.begin(Stage.MEASURE)
                write_encoder_config(directory, manifest.task, measure(EncoderRunner(directory, manifest), manifest))
    return ExportResult(target, manifest, clock.end(), notes)


def _write(
    holder: list[LoadedModel], directory: Path, options: ExportOptions, clock: StageClock
) -> tuple[ModelManifest, EncoderReference, tuple[str, ...]]:
    """Everything up to the proof. Takes the model out of ``holder``, so that its weights are freed on return."""
    loaded = holder.pop()
    tokenizer = write_tokenizer(loaded.tokenizer, loaded.model, directory)
    prove_text(loaded.tokenizer, tokenizer, directory)
    prove_pairs(loaded.tokenizer, tokenizer, directory)
    plan = plan_encoder(loaded, options)
    reference = encoder_reference(loaded, plan, options.task)
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    graph_model = build_graph(loaded.model, plan, options, clock)
    clock.begin(Stage.WRITE)
    write_graph(graph_model, directory / GRAPH_FILE)
    model = ModelSpec(
        name=options.name or loaded.source.label,
        source=loaded.source.label,
        model_type=loaded.model.config.model_type,
        dtype=options.dtype,
        num_parameters=num_parameters,
        vocab_size=loaded.model.get_input_embeddings().weight.shape[0],
        max_model_len=plan.longest,
    )
    return _describe(options.task, model, plan, tokenizer, (graph_model.graph, directory)), reference, plan.notes


def _describe(
    task: str, model: ModelSpec, plan: EncoderPlan, tokenizer: TokenizerSpec, written: tuple[ir.Graph, Path]
) -> ModelManifest:
    """The manifest of what was written, the graph and its folder, not proven yet."""
    graph, directory = written
    spec: GraphSpec = graph_spec(graph, {"none": GRAPH_FILE})
    return ModelManifest(
        task=task,
        model=model,
        graphs={ROLE: spec},
        tokenizer=tokenizer,
        cache=None,
        position_offset=plan.position_offset,
        generation={},
        files=hash_files(directory),
        proof={},
        fastserve_version=fastserve.__version__,
        encoder=plan.spec,
    )


def check_served(directory: Path) -> None:
    """Read everything as the server will. Raises UnsupportedModel when the task cannot be done with what was written."""
    manifest = ModelManifest.load(directory)
    assert manifest.tokenizer is not None
    try:
        make_task(manifest, Tokenizer(directory, manifest.tokenizer))
    except ManifestError as error:
        raise UnsupportedModel(f"{manifest.model.source}: cannot be served for {manifest.task}: {error}") from error


def write_encoder_config(directory: Path, task: str, throughputs: Throughputs) -> None:
    """config.pbtxt beside the version folder, with the best number of tokens to run at once. ``throughputs``: what was
    measured; nothing where sequences run one at a time."""
    size = best_size(throughputs) if throughputs else EncoderConfig().max_batched_tokens
    (directory.parent / CONFIG_FILE).write_text(render_encoder_config_pbtxt(task, size, throughputs), encoding="utf-8")
