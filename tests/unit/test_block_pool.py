"""Block ids: allocation, sharing, release."""

from __future__ import annotations

import pytest

from fastserve.core.block_pool import BlockPool


def test_every_block_is_handed_out_once_and_comes_back():
    pool = BlockPool(5, 16)
    taken = pool.allocate(5)
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_used) == (0, 5)
    pool.release(taken)
    assert (pool.num_free, pool.num_used) == (5, 0)


def test_asking_for_too_many_takes_nothing():
    pool = BlockPool(3, 16)
    pool.allocate(2)
    with pytest.raises(MemoryError, match="2 blocks wanted, 1 of 3 are free"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_a_shared_block_is_free_only_after_its_last_owner_let_go():
    pool = BlockPool(1, 16)
    blocks = pool.allocate(1)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_free == 0
    pool.release(blocks)
    assert pool.num_free == 1


def test_a_free_block_can_neither_be_released_nor_shared():
    pool = BlockPool(2, 16)
    with pytest.raises(ValueError, match="block 0 is free already"):
        pool.release([0])
    with pytest.raises(ValueError, match="block 1 is free and cannot be shared"):
        pool.share([1])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_tokens_round_up_to_blocks(tokens, blocks):
    assert BlockPool(10, 16).blocks_for(tokens) == blocks
