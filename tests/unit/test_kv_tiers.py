"""The bytes of the tiers: what went out comes back, whatever the arrays of the pool are."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fastserve.core.swapper import Tier, Transfer
from fastserve.errors import ConfigError
from fastserve.manifest import CacheSpec, LayerCacheSpec
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.kv_tiers import FILE_BATCH, KVTiers

NUM_BLOCKS = 40


def filled_arrays():
    """Of a pool of two unlike layers, and scales of another type and shape beside them."""
    kv_cache = KVCache(CacheSpec((LayerCacheSpec(2, 4), LayerCacheSpec(1, 3))), NUM_BLOCKS, 4, "fp32")
    arrays = [*kv_cache.arrays().values(), np.zeros((NUM_BLOCKS, 5), np.float16), np.zeros((NUM_BLOCKS, 2, 3), np.int8)]
    rng = np.random.default_rng(0)
    for array in arrays:
        array[:] = rng.integers(-100, 100, array.shape)
    return arrays


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("count", [1, 5, FILE_BATCH, 2 * FILE_BATCH + 3])
def test_blocks_come_back_to_other_blocks_as_they_went_out(tier, count, tmp_path):
    arrays = filled_arrays()
    before = [array.copy() for array in arrays]
    tiers = KVTiers(arrays, {tier: NUM_BLOCKS}, tmp_path)
    rng = np.random.default_rng(1)
    source, target, slots = (tuple(rng.permutation(NUM_BLOCKS)[:count].tolist()) for _ in range(3))
    tiers.copy(Transfer(1, tier, True, source, slots))
    for array in arrays:
        array[list(source)] = 99
    tiers.copy(Transfer(2, tier, False, target, slots))
    for array, old in zip(arrays, before, strict=True):
        assert np.array_equal(array[list(target)], old[list(source)])
        others = [block for block in range(NUM_BLOCKS) if block not in source + target]
        assert np.array_equal(array[others], old[others])
    tiers.close()


def test_slots_do_not_touch_each_other(tmp_path):
    arrays = filled_arrays()
    before = [array.copy() for array in arrays]
    tiers = KVTiers(arrays, {Tier.FILE: 8}, tmp_path)
    for number, slot in enumerate((3, 0, 7, 4)):
        tiers.copy(Transfer(number, Tier.FILE, True, (number,), (slot,)))
    for number, slot in enumerate((3, 0, 7, 4)):
        tiers.copy(Transfer(number, Tier.FILE, False, (20 + number,), (slot,)))
    for array, old in zip(arrays, before, strict=True):
        assert np.array_equal(array[20:24], old[:4])
    tiers.close()


def test_the_file_has_its_size_from_the_first_and_no_name(tmp_path):
    tiers = KVTiers(filled_arrays(), {Tier.FILE: 8}, tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []
    assert os.fstat(tiers._file).st_size == 8 * tiers.bytes_per_block
    tiers.close()
    tiers.close()


def test_a_block_takes_as_many_bytes_as_in_the_pool():
    arrays = filled_arrays()
    assert KVTiers(arrays, {}).bytes_per_block == sum(array.nbytes for array in arrays) // NUM_BLOCKS


def test_a_file_that_the_disk_has_no_room_for_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"swap_file_bytes: got \d+, allowed: what .* has room for"):
        KVTiers(filled_arrays(), {Tier.FILE: 1 << 45}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"swap_directory: got .*file/below, allowed: a folder"):
        KVTiers(filled_arrays(), {Tier.FILE: 1}, tmp_path / "file" / "below")


def test_a_file_that_lost_its_end_is_an_error_and_no_silent_zeros(tmp_path):
    tiers = KVTiers(filled_arrays(), {Tier.FILE: 2}, tmp_path)
    os.ftruncate(tiers._file, 0)
    with pytest.raises(OSError, match="shorter"):
        tiers.copy(Transfer(1, Tier.FILE, False, (0,), (1,)))
    tiers.close()
