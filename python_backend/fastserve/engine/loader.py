"""From an exported decoder's folder to an engine that is warm and a task that feeds it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from fastserve.config import EngineConfig
from fastserve.core.block_pool import BlockPool
from fastserve.core.cost_model import CostModel
from fastserve.core.planner import StepLimits
from fastserve.core.policy import AUTOMATIC, make_policy, needs_costs
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler
from fastserve.engine.engine import Engine
from fastserve.engine.instances import num_threads_of, shares_weights
from fastserve.engine.warm_up import WARM_UP_REQUEST_ID, warm_up
from fastserve.errors import ConfigError, ManifestError
from fastserve.manifest import CacheSpec, ModelManifest
from fastserve.tasks.text_generation import TextGeneration
from fastserve.text.templates import ChatTemplate
from fastserve.text.tokenizer import Tokenizer
from fastserve.worker.kv_cache import KVCache, bytes_per_block, num_blocks_for, read_free_memory
from fastserve.worker.model_runner import ModelRunner
from fastserve.worker.session import SessionSettings

logger = logging.getLogger(__name__)


def load_engine(
    directory: Path,
    manifest: ModelManifest,
    config: EngineConfig,
    clock: Callable[[], float],
    *,
    num_instances: int = 1,
    profile: Path | None = None,
) -> Engine:
    """Build the engine of a decoder and run it once at its largest shape, so that the first client finds it warm.

    ``num_instances``: of this model on this machine; they divide cores and free memory. ``profile``: see ``SessionSettings``.
    Raises ConfigError, ManifestError, or what the warm-up run failed with.
    """
    if manifest.cache is None or "decoder" not in manifest.graphs:
        raise ManifestError(f"task: got {manifest.task}, allowed: text-generation (a decoder with a KV cache)")
    max_model_len = max_model_len_of(manifest, config)
    runner = ModelRunner(
        directory,
        manifest,
        kv_cache_dtype=config.kv_cache_dtype,
        session=SessionSettings(
            num_threads_of(config, num_instances), share_weights=shares_weights(config, num_instances), profile=profile
        ),
    )
    # The weights are in memory now: what is free is what the pool can have.
    num_blocks = num_blocks_for(config, manifest.cache, max_model_len, read_free_memory() // num_instances)
    limits = StepLimits(config.max_num_seqs, config.max_batched_tokens)
    cost_model = CostModel(0.0, 0.0, max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens)
    scheduler = Scheduler(
        limits,
        BlockPool(num_blocks, config.block_size),
        make_policy(config.policy, cost_model, inner=config.priority_inner_policy),
        max_model_len=max_model_len,
        max_queue_size=config.max_queue_size,
    )
    kv_cache = KVCache(manifest.cache, num_blocks, config.block_size, config.kv_cache_dtype)
    engine = Engine(scheduler, runner, kv_cache, clock=clock, cost_model=cost_model, position_offset=manifest.position_offset)
    _log_pool(manifest.cache, config, num_blocks)
    num_tokens = min(config.max_batched_tokens, max_model_len - 2, num_blocks * config.block_size - 1)
    prompt, params = (0,) * max(1, num_tokens), SamplingParams(max_tokens=2, temperature=0.0)
    warm_up(engine, Request(WARM_UP_REQUEST_ID, prompt, params))  # the largest prefill and a decode
    if needs_costs(config.policy, inner=config.priority_inner_policy):  # of the others no request waits for a profile
        _profile(engine, prompt, clock)
        _log_policy(config, cost_model)
    return engine


def _profile(engine: Engine, prompt: tuple[int, ...], clock: Callable[[], float]) -> None:
    """Measure, now that the engine is warm, what a step costs: prefills of several sizes, each a step, and decodes."""
    samples: list[tuple[int, float]] = []
    for size in (len(prompt) - 2, len(prompt) // 2, len(prompt) // 4):
        part = prompt[: max(1, size)]
        engine.submit(Request(WARM_UP_REQUEST_ID, part, SamplingParams(max_tokens=4, temperature=0.0)))
        num_tokens = len(part)
        while engine.has_work:
            started = clock()
            engine.step()
            samples.append((num_tokens, clock() - started))
            num_tokens = 1
    engine.reset_counters()
    engine.cost_model.start_from(samples or [(1, 0.0)])


def _log_policy(config: EngineConfig, costs: CostModel) -> None:
    share = costs.base_s / costs.step_seconds(costs.max_num_seqs)
    logger.info(
        "a step takes %.2f ms and %.3f ms a token: in a full batch %.0f %% is spent whatever the number of tokens",
        costs.base_s * 1e3,
        costs.token_s * 1e3,
        100 * share,
    )
    if config.policy == "auto":
        logger.info(
            "policy auto: %s, for short mean completion times, memory bound or compute bound",
            AUTOMATIC,
        )


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


def _log_pool(spec: CacheSpec, config: EngineConfig, num_blocks: int) -> None:
    size = num_blocks * bytes_per_block(spec, config.block_size, config.kv_cache_dtype)
    logger.info(
        "KV pool: %d blocks of %d tokens, %s, %.0f MiB", num_blocks, config.block_size, config.kv_cache_dtype, size / 2**20
    )
