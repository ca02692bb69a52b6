"""From an exported decoder's folder to an engine that is warm and a task that feeds it."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from fastserve.config import EngineConfig
from fastserve.core.admission import QueueLimits
from fastserve.core.attention_windows import AttentionWindows
from fastserve.core.batch_limits import WIDEST, fill_in
from fastserve.core.cost_model import CostModel
from fastserve.core.policy import make_policy
from fastserve.core.policy.fcfs import FirstComeFirstServed
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts
from fastserve.engine.cost_file import CostFile, circumstances
from fastserve.engine.engine import Engine
from fastserve.engine.instances import Instance, num_threads_of, shares_weights
from fastserve.engine.kv_memory import KVMemory, make_kv_memory
from fastserve.engine.step_costs import choose_limits, find_costs, log_costs
from fastserve.engine.warm_up import WARM_UP_REQUEST_ID, warm_up
from fastserve.errors import ConfigError, ManifestError
from fastserve.manifest import CacheSpec, ModelManifest
from fastserve.tasks.text_generation import TextGeneration
from fastserve.text.templates import ChatTemplate
from fastserve.text.tokenizer import Tokenizer
from fastserve.worker.device import HOST, device_of
from fastserve.worker.kv_cache import read_free_memory
from fastserve.worker.model_runner import ModelRunner
from fastserve.worker.session import SessionSettings
from fastserve.worker.shared_weights import cache_directory

logger = logging.getLogger(__name__)


def load_engine(
    directory: Path,
    manifest: ModelManifest,
    config: EngineConfig,
    clock: Callable[[], float],
    *,
    instance: Instance = Instance(),  # noqa: B008 (frozen)
    profile: Path | None = None,
) -> Engine:
    """Build the engine of a decoder and run it once at its largest shape, so that the first client finds it warm.

    ``instance``: all of this model divide cores and free memory. ``profile``: see ``SessionSettings``. How much of a GPU's memory
    the pool may take must be configured.
    Raises ConfigError, ManifestError, or what the warm-up run failed with.
    """
    if manifest.cache is None or "decoder" not in manifest.graphs:
        raise ManifestError(f"task: got {manifest.task}, allowed: text-generation (a decoder with a KV cache)")
    max_model_len = max_model_len_of(manifest, config)
    # Until it is known what steps cost, the engine is one for the widest batches that can be chosen.
    limits = fill_in(config.max_num_seqs, config.max_batched_tokens, WIDEST)
    widest = dataclasses.replace(config, max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens)
    settings = SessionSettings(num_threads_of(config, instance.num_instances), config.spinning == "on", profile=profile)
    device = device_of(manifest, directory, instance.device_number)
    shares = device is HOST and shares_weights(config, instance.num_instances)
    session = dataclasses.replace(settings, share_weights=shares, providers=device.providers)
    runner = ModelRunner(directory, manifest, kv_cache_dtype=config.kv_cache_dtype, session=session)
    # The weights are in memory now: what is free is what the pool and the tiers below it can have.
    free_memory = read_free_memory() // instance.num_instances if device is HOST else 0
    memory = make_kv_memory(widest, manifest.cache, max_model_len, free_memory, clock, device)
    engine = Engine(
        _scheduler(widest, manifest, memory, max_model_len),
        runner,
        memory.cache,
        clock=clock,
        cost_model=_cost_model(limits, manifest.cache),
        position_offset=manifest.position_offset,
        copier=memory.copier,
    )
    _prepare(engine, config, CostFile(cache_directory(), circumstances(manifest, widest, settings.num_threads)), clock)
    return engine


def _scheduler(config: EngineConfig, manifest: ModelManifest, memory: KVMemory, max_model_len: int) -> Scheduler:
    """``config``: with the widest limits."""
    return Scheduler(
        StepLimits(config.max_num_seqs, config.max_batched_tokens),
        PrefixCache(memory.pool, mode=config.prefix_cache, identity=_identity(manifest, config)),
        FirstComeFirstServed(),
        max_model_len=max_model_len,
        queue=QueueLimits(config.max_queue_size, config.max_queue_size_per_tenant),
        swapper=memory.swapper,
    )


def _cost_model(limits: StepLimits, cache: CacheSpec) -> CostModel:
    """One that knows no costs yet."""
    return CostModel(
        StepCosts(0.0, 0.0),
        max_num_seqs=limits.max_num_seqs,
        max_batched_tokens=limits.max_batched_tokens,
        windows=AttentionWindows.of_layers(layer.window for layer in cache.layers),
    )


def _prepare(engine: Engine, config: EngineConfig, costs: CostFile, clock: Callable[[], float]) -> None:
    """Run the engine at its largest shape, find out what its steps cost, and choose by it what ``config`` leaves open."""
    scheduler, model = engine.scheduler, engine.cost_model
    room = min(scheduler.max_model_len - 2, scheduler.pool.num_blocks * config.block_size - 1)
    num_tokens = max(1, min(scheduler.limits.max_batched_tokens, room))
    params = SamplingParams(max_tokens=2, temperature=0.0)
    warm_up(engine, Request(WARM_UP_REQUEST_ID, (0,) * num_tokens, params))  # the largest prefill and a decode
    find_costs(engine, costs, num_tokens, clock)
    if 0 in (config.max_num_seqs, config.max_batched_tokens):
        choose_limits(config, engine, costs.profiled)
    log_costs(config, model, costs.profiled)
    # Nothing of the warm-up stays: a policy that learns would take it for traffic.
    starvation_s = config.mlfq_starvation_ms / 1e3
    scheduler.policy = make_policy(config.policy, model, inner=config.priority_inner_policy, starvation_s=starvation_s)


def _identity(manifest: ModelManifest, config: EngineConfig) -> str:
    """What keys and values depend on beside the tokens: the model's files and how they are stored."""
    return " ".join((config.kv_cache_dtype, *(entry.sha256 for _, entry in sorted(manifest.files.items()))))


def max_model_len_of(manifest: ModelManifest, config: EngineConfig) -> int:
    """Longest prompt + output in tokens. Raises ConfigError when the configuration wants more than the model can."""
    if config.max_model_len > manifest.model.max_model_len or config.max_model_len == 1:
        raise ConfigError(f"max_model_len: got {config.max_model_len}, allowed: 0, or 2 to {manifest.model.max_model_len}")
    return config.max_model_len or manifest.model.max_model_len


def load_text_generation(directory: Path, manifest: ModelManifest, config: EngineConfig) -> TextGeneration:
    """The task that turns requests into tokens for this model. Raises ManifestError."""
    if manifest.tokenizer is None:
        raise ManifestError("tokenizer: missing; text generation needs one")
    template = None
    if manifest.tokenizer.chat_template is not None:
        source = (directory / manifest.tokenizer.chat_template).read_text(encoding="utf-8")
        template = ChatTemplate(source, manifest.tokenizer.special_tokens)
    return TextGeneration(
        manifest,
        Tokenizer(directory, manifest.tokenizer),
        template,
        max_model_len=max_model_len_of(manifest, config),
        random_seed=lambda: secrets.randbits(64),
        default_deadline_ms=config.default_deadline_ms,
    )
