"""Export of decoder-only language models: load, guard, trace, convert, write, prove, publish."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import onnx_ir as ir

import fastserve
from fastserve.export.activations import use_single_operations
from fastserve.export.adapter import check_adapter, merge_adapter
from fastserve.export.attention import AttentionLayer, probe
from fastserve.export.cuda import check_layers_for_cuda, prove_for_cuda, write_copy_graph
from fastserve.export.decoder_quantization import QuantizationGround, prepare_quantization, quantize_decoder
from fastserve.export.decoder_rewrites import optimize_decoder
from fastserve.export.description import cache_spec, graph_spec, notes, write_tokenizer
from fastserve.export.generation_settings import generation_defaults
from fastserve.export.graph import convert, trace_packed
from fastserve.export.graph_guards import check_graph
from fastserve.export.guards import check_config, check_layers, check_model
from fastserve.export.half_precision import half_precision_loss, narrow_weights, round_weights
from fastserve.export.onnx_files import write_graphs
from fastserve.export.options import (
    FP32,
    INT4,
    INT8,
    MAX_PERPLEXITY_RISE,
    ExportOptions,
    ExportResult,
    Progress,
    Stage,
    model_name_from,
    no_progress,
)
from fastserve.export.precision_choice import PrecisionChoice
from fastserve.export.proof import LONGEST_WINDOW, Reference, prove, reference_run
from fastserve.export.publish import check_target, served_cache, staged_version
from fastserve.export.quality import SourceQuality, measure_quality
from fastserve.export.quiet import quiet_libraries
from fastserve.export.rewrites.prepacking import prepack_products
from fastserve.export.rewrites.prologues import fuse_prologues
from fastserve.export.rotary import RotaryPlan, freeze_frequencies, rotary_plan
from fastserve.export.source import LoadedModel, load, load_config, resolve
from fastserve.export.stages import StageClock, readable_os_errors
from fastserve.export.targets import TARGETS
from fastserve.export.text_proof import prove_text
from fastserve.manifest import CPU, CUDA, GraphSpec, ModelManifest, ModelSpec, TokenizerSpec, hash_files
from fastserve.worker.device import COPY_ROLE


def export_model(source: str, options: ExportOptions, progress: Progress = no_progress) -> ExportResult:
    """Export ``source`` (a folder, a .gguf file or a hub id) into the model repository ``options.output``.

    Nothing appears there unless every guard and the proof pass. Raises ModelNotFound, UnsupportedModel, ProofFailed,
    InvalidRequest or ToolError.
    """
    with readable_os_errors():
        return _export(source, options, progress)


def _export(source: str, options: ExportOptions, progress: Progress) -> ExportResult:
    found = resolve(source)
    name = options.name or model_name_from(found.label)
    target = check_target(options, name)
    cache = served_cache(target, options)
    clock = StageClock(progress)
    with quiet_libraries():
        clock.begin(Stage.LOAD)
        config = load_config(found)
        check_config(config)
        check_adapter(options.adapter)
        plan = rotary_plan(config, options.max_model_len)  # refuses what it cannot bound before the weights are read
        options = dataclasses.replace(options, name=name, max_model_len=plan.max_model_len)
        loaded = [load(found, config)]
        merged = merge_adapter(loaded[0], options.adapter) if options.adapter is not None else None
        with staged_version(options, name) as directory:
            remarks = _notes(loaded[0], plan) + ((merged,) if merged else ()) + cache.notes
            manifest, reference, quality = _write(loaded, directory, options, plan, clock, cache.dtype)
            gc.collect()  # the source model is in reference cycles
            clock.begin(Stage.PROVE)
            measured = (prove_for_cuda if options.device == CUDA else prove)(directory, manifest, reference)
            if quality is not None:
                measured |= measure_quality(directory, manifest, quality, kv_cache_dtype=cache.dtype)
            manifest = dataclasses.replace(manifest, proof=manifest.proof | measured)
            manifest.save(directory)
            ModelManifest.load(directory)  # as the server will
    return ExportResult(target, manifest, clock.end(), remarks)


def _notes(loaded: LoadedModel, plan: RotaryPlan) -> tuple[str, ...]:
    brings_code = bool(getattr(loaded.model.config, "auto_map", None))
    return notes(loaded.model, loaded.tokenizer, brings_code, plan, LONGEST_WINDOW)


def _write(
    holder: list[LoadedModel], directory: Path, options: ExportOptions, plan: RotaryPlan, clock: StageClock, cache_dtype: str
) -> tuple[ModelManifest, Reference, SourceQuality | None]:
    """Everything up to the proof. Takes the model out of ``holder``, so that its weights are freed on return. ``cache_dtype``: of
    the KV cache that the model will be served with."""
    loaded = holder.pop()
    model = loaded.model
    check_model(model)
    tokenizer = write_tokenizer(loaded.tokenizer, model, directory)
    prove_text(loaded.tokenizer, tokenizer, directory)
    generation_defaults(model.generation_config)  # refuses bad ones before the slow part
    layers = probe(model)
    check_layers(model.config, layers)
    if plan.beyond is not None:  # the source would change sets inside the reference run
        freeze_frequencies(model, plan.beyond)
    target = TARGETS[options.device]
    if options.device == CUDA:
        check_layers_for_cuda(model.config.model_type, layers)
        round_weights(model, target.dtype)
    reference = reference_run(model, plan.max_model_len, {layer.window for layer in layers})
    freeze_frequencies(model)  # else after the reference run: the proof covers the freezing too
    losses = _narrow(model, options.device, reference)
    ground = None
    if options.dtype in MAX_PERPLEXITY_RISE:
        ground = prepare_quantization(loaded, options, plan.max_model_len, cache_dtype)
    graph_model, choice = _build_graph(model, layers, options, ground, clock)
    clock.begin(Stage.WRITE)
    write_graphs(graph_model, directory, target.graph_files)
    graphs = {"decoder": graph_spec(graph_model.graph, dict(target.graph_files))}
    if options.device == CUDA:
        graphs[COPY_ROLE] = write_copy_graph(directory)
    manifest = dataclasses.replace(_describe(loaded, options, graphs, tokenizer, layers, directory), proof=losses)
    if choice is not None:
        int8 = choice.products_in(INT8) if options.dtype == INT4 else ()
        spec = dataclasses.replace(manifest.model, fp32_modules=choice.products_in(FP32), int8_modules=int8)
        manifest = dataclasses.replace(manifest, model=spec, proof=choice.measures())
    return manifest, reference, ground.quality if ground is not None else None


def _build_graph(
    model: Any, layers: list[AttentionLayer], options: ExportOptions, ground: QuantizationGround | None, clock: StageClock
) -> tuple[ir.Model, PrecisionChoice | None]:
    """Trace, convert, rewrite. ``options``: as they are carried out; ``ground``: of int8 and int4, whose choice is returned."""
    target = TARGETS[options.device]
    clock.begin(Stage.TRACE)
    program = trace_packed(model, layers, target)
    clock.begin(Stage.CONVERT)
    graph_model = convert(program, len(layers), target)
    check_graph(graph_model.graph, len(layers), target.domain)
    if options.device != CPU:  # no GPU has our operators
        return graph_model, None
    assert options.max_model_len is not None
    optimize_decoder(graph_model, options.max_model_len)
    choice = None
    if ground is not None:
        clock.begin(Stage.WEIGH)
        choice = quantize_decoder(graph_model, model, ground, options)
    prepack_products(graph_model.graph)
    fuse_prologues(graph_model.graph)
    return graph_model, choice


def _narrow(model: Any, device: str, reference: Reference) -> dict[str, float]:
    """Store the weights in the device's type; what that loses. On a CPU they stay, and activations that the source spells out
    become single operations."""
    if device != CUDA:
        use_single_operations(model)
        return {}
    narrow_weights(model, TARGETS[device].dtype)
    return half_precision_loss(model, reference)


def _describe(
    loaded: LoadedModel,
    options: ExportOptions,
    graphs: dict[str, GraphSpec],
    tokenizer: TokenizerSpec,
    layers: list[AttentionLayer],
    directory: Path,
) -> ModelManifest:
    """The manifest of the files in ``directory``, not proven yet. ``options``: as they are carried out."""
    model = loaded.model
    assert options.max_model_len is not None
    vocab_size = graphs["decoder"].outputs[0].shape[1]
    assert isinstance(vocab_size, int)
    return ModelManifest(
        task=options.task,
        model=ModelSpec(
            name=options.name or loaded.source.label,
            source=loaded.source.label,
            model_type=model.config.model_type,
            dtype=options.dtype,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            vocab_size=vocab_size,
            max_model_len=options.max_model_len,
            adapter=options.adapter.resolve().name if options.adapter is not None else None,
            device=options.device,
        ),
        graphs=graphs,
        tokenizer=tokenizer,
        cache=cache_spec(layers, TARGETS[options.device].layouts),
        position_offset=0,
        generation=generation_defaults(model.generation_config),
        files=hash_files(directory),
        proof={},
        fastserve_version=fastserve.__version__,
    )
