"""From an exported encoder's folder to an engine that is warm and a task that feeds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastserve.config import EncoderConfig
from fastserve.core.encoder_scheduler import EncoderScheduler
from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.core.step_limits import StepLimits
from fastserve.engine.encoder_engine import EncoderEngine
from fastserve.engine.instances import num_threads_of, shares_weights
from fastserve.engine.warm_up import WARM_UP_REQUEST_ID, warm_up
from fastserve.errors import ManifestError
from fastserve.manifest import EncoderSpec, ModelManifest
from fastserve.tasks.encoding_task import EncodingTask, make_task
from fastserve.text.tokenizer import Tokenizer
from fastserve.worker.encoder_runner import EncoderRunner
from fastserve.worker.padded_encoder_runner import ALONE, PADDED, PaddedEncoderRunner


def load_encoder_engine(
    directory: Path, manifest: ModelManifest, config: EncoderConfig, clock: Callable[[], float], *, num_instances: int
) -> EncoderEngine:
    """Build the engine of an encoder and run it once with its token budget full.

    ``num_instances``: of this model on this machine; they divide the cores. Raises ManifestError, or what the warm-up run
    failed with.
    """
    if manifest.encoder is None:
        raise ManifestError(f"task: got {manifest.task}, allowed: the task of an encoder")
    spec = manifest.encoder
    limits = StepLimits(1 if spec.batching == ALONE else config.max_num_seqs, config.max_batched_tokens)
    scheduler = EncoderScheduler(limits, max_queue_size=config.max_queue_size, padded=spec.batching == PADDED)
    num_threads, share_weights = num_threads_of(config, num_instances), shares_weights(config, num_instances)
    runner_class = _runner_class(spec)
    runner = runner_class(directory, manifest, num_threads=num_threads, share_weights=share_weights)
    engine = EncoderEngine(scheduler, runner, clock=clock)
    warm_up(engine, _full_budget(spec, limits))
    return engine


def _runner_class(spec: EncoderSpec) -> type[EncoderRunner] | type[PaddedEncoderRunner]:
    if spec.batching == "packed":
        return EncoderRunner
    if spec.batching in (PADDED, ALONE):
        return PaddedEncoderRunner
    raise ManifestError(f"encoder.batching: got {spec.batching!r}, allowed: packed, {PADDED} or {ALONE}")


def _full_budget(spec: EncoderSpec, limits: StepLimits) -> EncodingRequest:
    """A request that fills the budgets of one run with sequences as long as may be."""
    length = min(spec.max_length, limits.max_batched_tokens)
    count = min(limits.max_batched_tokens // length, limits.max_num_seqs)
    sequence = TokenSequence((0,) * length, rows=(0,) if spec.output == "row" else ())
    return EncodingRequest(WARM_UP_REQUEST_ID, (sequence,) * count)


def load_encoding_task(directory: Path, manifest: ModelManifest, config: EncoderConfig) -> EncodingTask:
    """The task that turns requests into sequences for this model, and outputs into answers. Raises ManifestError."""
    if manifest.tokenizer is None:
        raise ManifestError("tokenizer: missing; an encoder needs one")
    return make_task(manifest, Tokenizer(directory, manifest.tokenizer), default_deadline_ms=config.default_deadline_ms)
