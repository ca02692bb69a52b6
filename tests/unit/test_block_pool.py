"""Block ids: allocation, sharing, release."""

from __future__ import annotations

import pytest

from fastserve.core.block_pool import WHOLE_PREFIXES, BlockPool


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


def registered_pool(num_blocks=4):
    """A pool whose blocks all have contents, named after them, and are free; of the first released the first."""
    pool = BlockPool(num_blocks, 16)
    for block in pool.allocate(num_blocks):
        pool.register(block, b"%d" % block)
    pool.release(range(num_blocks))
    return pool


def test_a_released_block_with_contents_is_free_and_can_still_be_found():
    pool = registered_pool()
    assert (pool.num_free, pool.num_cached, pool.num_used) == (4, 4, 0)
    assert [pool.find(b"%d" % block) for block in range(4)] == [0, 1, 2, 3]


def test_a_prefix_is_found_up_to_the_first_block_that_is_not_there():
    pool = registered_pool()
    assert pool.find_prefix([b"0", b"1", b"2"]) == (0, 1, 2)
    assert pool.find_prefix([b"0", b"other", b"3"]) == (0,)
    assert pool.find_prefix([b"other", b"1"]) == pool.find_prefix([]) == ()


def test_a_prefix_that_was_found_is_not_found_again_when_a_block_of_it_is_gone():
    pool = registered_pool()
    assert pool.find_prefix([b"2", b"0", b"3"]) == (2, 0, 3)
    assert pool.allocate(1) == [0]
    assert pool.find_prefix([b"2", b"0", b"3"]) == (2,)
    pool.register(0, b"0")
    assert pool.find_prefix([b"2", b"0", b"3"]) == (2, 0, 3)
    pool.forget()
    assert pool.find_prefix([b"2", b"0", b"3"]) == ()


def test_few_prefixes_are_kept_and_all_are_found():
    pool = registered_pool(2 * WHOLE_PREFIXES)
    for _ in range(2):
        assert all(pool.find_prefix([b"%d" % block]) == (block,) for block in range(2 * WHOLE_PREFIXES))


def test_the_longest_idle_block_is_evicted_first_and_forgotten():
    pool = registered_pool()
    pool.share([0])
    pool.release([0])
    assert pool.allocate(3) == [1, 2, 3]
    assert (pool.find(b"1"), pool.digest(1)) == (None, None)
    assert pool.cached_blocks() == (0,) and pool.digests() == {0: b"0"}


def test_a_block_without_contents_is_handed_out_before_any_is_evicted():
    pool = registered_pool()
    (evicted,) = pool.allocate(1)
    pool.release([evicted])
    assert pool.allocate(1) == [evicted]
    assert pool.num_cached == 3


def test_a_cached_block_that_is_shared_is_in_use_and_not_evicted():
    pool = registered_pool()
    pool.share([0, 1])
    assert (pool.num_free, pool.num_used, pool.ref_count(0)) == (2, 2, 1)
    assert pool.allocate(2) == [2, 3]
    with pytest.raises(MemoryError, match="1 blocks wanted, 0 of 4 are free"):
        pool.allocate(1)


def test_contents_belong_to_the_block_that_had_them_first():
    pool = BlockPool(2, 16)
    first, second = pool.allocate(2)
    pool.register(first, b"same")
    pool.register(second, b"same")
    assert pool.find(b"same") == first and pool.digest(second) is None
    pool.release([first, second])
    assert (pool.cached_blocks(), pool.blank_blocks()) == ((first,), (second,))


def test_a_free_block_cannot_be_registered():
    with pytest.raises(ValueError, match="block 0 is free and cannot be registered"):
        BlockPool(1, 16).register(0, b"contents")


def test_what_was_forgotten_is_free_and_cannot_be_found():
    pool = registered_pool()
    pool.share([2])
    pool.forget()
    assert pool.find(b"1") is None and pool.find(b"2") is None
    assert (pool.num_free, pool.num_cached) == (3, 0)
    pool.release([2])
    assert sorted(pool.blank_blocks()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_tokens_round_up_to_blocks(tokens, blocks):
    assert BlockPool(10, 16).blocks_for(tokens) == blocks
