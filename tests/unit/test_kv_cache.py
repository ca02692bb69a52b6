"""The KV pool: shapes, sizes, and how many blocks a machine can afford."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.config import EngineConfig
from fastserve.errors import ConfigError
from fastserve.manifest import CacheSpec, LayerCacheSpec
from fastserve.worker.kv_cache import KVCache, bytes_per_block, num_blocks_for, read_free_memory

SPEC = CacheSpec((LayerCacheSpec(2, 8), LayerCacheSpec(1, 4)))
BLOCK_BYTES = 16 * (2 * 2 * 8 + 2 * 1 * 4) * 4
"""fp32, 16 tokens."""
MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    5000 kB\nSwapFree: 7 kB\n"


@pytest.mark.parametrize(("dtype", "element"), [("fp32", np.float32), ("fp16", np.float16)])
def test_keys_and_values_have_the_kernels_layouts(dtype, element):
    cache = KVCache(SPEC, 5, 16, dtype)
    assert [keys.shape for keys in cache.keys] == [(5, 2, 8, 16), (5, 1, 4, 16)]
    assert [values.shape for values in cache.values] == [(5, 2, 16, 8), (5, 1, 16, 4)]
    assert {array.dtype for array in cache.keys + cache.values} == {np.dtype(element)}
    assert cache.block_size == 16


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_copied_blocks_have_the_same_bytes_in_every_layer_and_others_keep_theirs(dtype):
    cache = KVCache(SPEC, 5, 16, dtype)
    for number, array in enumerate(cache.arrays().values()):
        array[:] = (np.arange(array.size) + number).reshape(array.shape)
    before = {name: array.copy() for name, array in cache.arrays().items()}
    cache.copy_blocks([(1, 3), (1, 0)])
    for name, array in cache.arrays().items():
        assert all(np.array_equal(array[block], before[name][source]) for block, source in enumerate((1, 1, 2, 1, 4)))
    cache.copy_blocks([])


def test_the_arrays_are_named_as_the_graphs_inputs_and_are_the_pool_itself():
    cache = KVCache(SPEC, 2, 16, "fp32")
    arrays = cache.arrays()
    assert set(arrays) == {"key_cache.0", "key_cache.1", "value_cache.0", "value_cache.1"}
    assert arrays["key_cache.1"] is cache.keys[1]
    assert arrays["value_cache.0"] is cache.values[0]
    assert all(array.flags.c_contiguous for array in arrays.values())


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_the_bytes_of_a_block_are_what_the_arrays_take(dtype):
    cache = KVCache(SPEC, 3, 32, dtype)
    assert bytes_per_block(SPEC, 32, dtype) * 3 == sum(array.nbytes for array in cache.arrays().values())


def test_half_precision_halves_a_block_and_int8_quarters_it_but_for_the_scales():
    assert bytes_per_block(SPEC, 16, "fp32") == BLOCK_BYTES
    assert bytes_per_block(SPEC, 16, "fp16") == BLOCK_BYTES // 2
    assert bytes_per_block(SPEC, 16, "int8") == BLOCK_BYTES // 4 + 16 * 4 * (2 * 2 + 2 * 1)


def test_an_int8_block_of_a_head_holds_its_elements_and_then_a_scale_for_each_token():
    cache = KVCache(SPEC, 5, 16, "int8")
    assert [array.shape for array in cache.arrays().values()] == [(5, 2, 12 * 16), (5, 1, 8 * 16)] * 2
    assert {array.dtype for array in cache.keys + cache.values} == {np.dtype(np.int8)}


def test_the_pool_takes_its_share_of_the_free_memory():
    config = EngineConfig(kv_cache_memory_fraction=0.5)
    assert num_blocks_for(config, SPEC, 1_000_000, free_memory=20 * BLOCK_BYTES + 5) == 10


def test_a_size_in_bytes_counts_whatever_is_free():
    config = EngineConfig(kv_cache_bytes=7 * BLOCK_BYTES + BLOCK_BYTES // 2)
    assert num_blocks_for(config, SPEC, 1_000_000, free_memory=1) == 7


def test_the_pool_is_never_larger_than_the_batch_could_use():
    config = EngineConfig(max_num_seqs=3, kv_cache_bytes=1000 * BLOCK_BYTES)
    assert num_blocks_for(config, SPEC, 33, free_memory=0) == 3 * 3
    assert num_blocks_for(config, SPEC, 32, free_memory=0) == 3 * 2


def test_exactly_one_block_is_enough():
    assert num_blocks_for(EngineConfig(kv_cache_bytes=BLOCK_BYTES), SPEC, 100, free_memory=0) == 1


@pytest.mark.parametrize("config", [EngineConfig(kv_cache_bytes=BLOCK_BYTES - 1), EngineConfig(kv_cache_memory_fraction=0.95)])
def test_a_pool_that_cannot_hold_one_block_is_refused_with_both_numbers(config):
    with pytest.raises(
        ConfigError, match=rf"^kv_cache_bytes: got \d+, allowed: at least {BLOCK_BYTES} \(one block of 16 tokens\)"
    ):
        num_blocks_for(config, SPEC, 100, free_memory=BLOCK_BYTES)


def test_free_memory_is_what_the_kernel_calls_available(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    assert read_free_memory(tmp_path) == 5000 * 1024


@pytest.mark.parametrize(
    ("limit_file", "usage_file"),
    [
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ],
)
@pytest.mark.parametrize(("limit", "free"), [("3000", 2000), ("900", 0), (str(2**62), 5000 * 1024)])
def test_a_container_has_no_more_than_its_own_limit_leaves(tmp_path, limit_file, usage_file, limit, free):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, limit_file, limit + "\n")
    write(tmp_path, usage_file, "1000\n")
    assert read_free_memory(tmp_path) == free


def test_what_a_container_has_cached_of_files_is_free(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "sys/fs/cgroup/memory.max", "3000000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "2900000\n")
    write(tmp_path, "sys/fs/cgroup/memory.stat", "anon 500000\nactive_file 400000\ninactive_file 2000000\n")
    assert read_free_memory(tmp_path) == 3000000 - 500000


def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "1000\n")
    assert read_free_memory(tmp_path) == 5000 * 1024


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_kernel_that_does_not_say_is_an_error_that_names_the_way_out(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal: 16000 kB\n")
    with pytest.raises(ConfigError, match=r"no MemAvailable line; set kv_cache_bytes"):
        read_free_memory(tmp_path)
