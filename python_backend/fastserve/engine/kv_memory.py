"""Where a model's keys and values are: the KV pool and the tiers below it, how large they are, and who copies between them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from fastserve.config import EngineConfig
from fastserve.core.block_pool import BlockPool
from fastserve.core.swapper import Swapper, Tier
from fastserve.engine.swap_thread import SwapThread
from fastserve.manifest import CacheSpec
from fastserve.worker.device import HOST, Device
from fastserve.worker.kv_cache import KVCache, num_blocks_for
from fastserve.worker.kv_tiers import KVTiers
from fastserve.worker.shared_weights import cache_directory

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class KVMemory:
    """Ids and bytes of the pool and of the tiers; ``copier`` is None when there are no tiers."""

    pool: BlockPool
    cache: KVCache
    swapper: Swapper
    copier: SwapThread | None


def make_kv_memory(
    config: EngineConfig, spec: CacheSpec, max_model_len: int, free_memory: int, clock: Callable[[], float], device: Device
) -> KVMemory:
    """``free_memory``: bytes that the model may share in. A pool that is not in the machine's memory has no tiers yet. Raises
    ConfigError when not one block fits, or the file cannot be made."""
    num_blocks = num_blocks_for(config, spec, max_model_len, free_memory)
    pool = BlockPool(num_blocks, config.block_size)
    cache = KVCache(spec, num_blocks, config.block_size, config.kv_cache_dtype, device)
    size = cache.bytes_per_block
    logger.info(
        "KV pool: %d blocks of %d tokens, %s, %.0f MiB",
        num_blocks,
        config.block_size,
        config.kv_cache_dtype,
        num_blocks * size / 2**20,
    )
    # Unless told, the host tier is as large as the pool, within the model's share of the memory: other models count on the rest.
    left = max(0, int(config.kv_cache_memory_fraction * free_memory) - num_blocks * size)
    host_bytes = config.swap_space_bytes or min(num_blocks * size, left)
    num_slots = {Tier.HOST: host_bytes // size, Tier.FILE: config.swap_file_bytes // size}
    if device is not HOST or config.preemption == "recompute" or not any(num_slots.values()):
        logger.info("preempted sequences are computed again")
        return KVMemory(pool, cache, Swapper(pool, {}), None)
    directory = Path(config.swap_directory) if config.swap_directory else cache_directory()
    tiers = KVTiers(list(cache.arrays().values()), num_slots, directory)
    logger.info(
        "preempted sequences are swapped (%s): %d blocks in memory, %.0f MiB, and %d in a file, %.0f MiB",
        config.preemption,
        *(value for count in num_slots.values() for value in (count, count * size / 2**20)),
    )
    swapper = Swapper(pool, num_slots, proactive=config.preemption == "proactive")
    return KVMemory(pool, cache, swapper, SwapThread(tiers, clock))
