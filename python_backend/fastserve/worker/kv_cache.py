"""The bytes of the paged KV pool. Which block belongs to whom is decided elsewhere (``core/block_pool.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.config import EngineConfig
from fastserve.errors import ConfigError
from fastserve.manifest import CacheSpec, LayerCacheSpec, cache_shape
from fastserve.worker.device import HOST, Device

CONTROL_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current"),  # version 2
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
)
"""Where a container finds its own memory limit and usage."""

DTYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

SCALE_BYTES = 4
"""Of an int8 cache: the float scale of each token and head, after the elements of a block of a head."""


class KVCache:
    """One key and one value array per layer, allocated once and written in place by the attention op.

    ``keys[i]`` and ``values[i]`` are of the manifest's layouts; on a CPU [num_blocks, kv_num_heads, head_size, block_size] and
    [num_blocks, kv_num_heads, block_size, head_size]. With int8 elements both are [num_blocks, kv_num_heads, (head_size + 4) *
    block_size]: the same elements, then a float scale for each token of the block. Memory of a CPU is committed by the operating
    system on first touch, so a large pool costs nothing until used.
    Owned by the engine thread.
    """

    def __init__(self, spec: CacheSpec, num_blocks: int, block_size: int, dtype: str, device: Device = HOST) -> None:
        """``device``: in whose memory it lies."""
        self.block_size = block_size
        self.bytes_per_block = bytes_per_block(spec, block_size, dtype)
        self._device = device

        def allocate(layout: str, layer: LayerCacheSpec) -> Any:
            shape = cache_shape(layout, layer, num_blocks, block_size)
            if dtype == "int8":
                shape = (num_blocks, layer.kv_num_heads, (layer.head_size + SCALE_BYTES) * block_size)
            return device.zeros(shape, DTYPES[dtype])

        self.keys: list[Any] = [allocate(spec.key_layout, layer) for layer in spec.layers]
        self.values: list[Any] = [allocate(spec.value_layout, layer) for layer in spec.layers]

    def arrays(self) -> dict[str, Any]:
        """The pool's arrays by graph input name."""
        named = {f"key_cache.{i}": keys for i, keys in enumerate(self.keys)}
        return named | {f"value_cache.{i}": values for i, values in enumerate(self.values)}

    def bind(self, binding: Any) -> None:
        """Make the pool's arrays inputs of a session's runs (an ``IOBinding``)."""
        for name, array in self.arrays().items():
            self._device.bind(binding, name, array)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the bytes of blocks in every layer. ``copies``: from and to; no block stands on both sides."""
        if not copies:
            return
        sources, targets = (list(blocks) for blocks in zip(*copies, strict=True))
        for array in self.keys + self.values:
            self._device.copy_rows(array, sources, targets)


def bytes_per_block(spec: CacheSpec, block_size: int, dtype: str) -> int:
    """Bytes of one block over all layers, keys and values."""
    itemsize, scale = int(np.dtype(DTYPES[dtype]).itemsize), SCALE_BYTES if dtype == "int8" else 0
    return sum(2 * layer.kv_num_heads * (layer.head_size * itemsize + scale) for layer in spec.layers) * block_size


def num_blocks_for(config: EngineConfig, spec: CacheSpec, max_model_len: int, free_memory: int) -> int:
    """How many blocks the pool gets: what the configuration allows, but never more than the batch could ever use.

    ``free_memory``: bytes free now, see :func:`read_free_memory`. Raises ConfigError if not even one block fits.
    """
    size = bytes_per_block(spec, config.block_size, config.kv_cache_dtype)
    budget = config.kv_cache_bytes or int(config.kv_cache_memory_fraction * free_memory)
    useful = config.max_num_seqs * math.ceil(max_model_len / config.block_size)
    num_blocks = min(budget // size, useful)
    if num_blocks < 1:
        raise ConfigError(f"kv_cache_bytes: got {budget}, allowed: at least {size} (one block of {config.block_size} tokens)")
    return num_blocks


def read_free_memory(root: Path = Path("/")) -> int:
    """Bytes that are still free: the machine's ``MemAvailable``, or less where a control group (a container) has a limit."""
    meminfo = (root / "proc/meminfo").read_text()
    available = next((int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")), None)
    if available is None:
        raise ConfigError("/proc/meminfo has no MemAvailable line; set kv_cache_bytes")
    for folder, limit_name, usage_name in CONTROL_GROUPS:
        limit, usage = root / folder / limit_name, root / folder / usage_name
        if limit.is_file() and usage.is_file() and (text := limit.read_text().strip()) != "max":
            used = int(usage.read_text()) - _page_cache(root / folder / "memory.stat")
            available = min(available, max(0, int(text) - used))
    return available


def _page_cache(statistics: Path) -> int:
    """Bytes of files that a control group's usage counts although the kernel gives them back when memory is short."""
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    return sum(int(value) for key, value in (line.split() for line in lines) if key in ("active_file", "inactive_file"))
