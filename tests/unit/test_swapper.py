"""The ledger of swapped sequences: a block or a slot has one owner from the beginning of its copy to the end."""

from __future__ import annotations

import pytest

from fastserve.core.block_pool import BlockPool
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.core.swapper import Stored, Swapper, Tier, TransferEnded, first_tier
from tests.doubles import make_request

BLOCK_SIZE = 4


def make_swapper(num_blocks=10, host=4, file=8):
    pool = BlockPool(num_blocks, BLOCK_SIZE)
    return pool, Swapper(pool, {Tier.HOST: host, Tier.FILE: file})


def running(pool, num_computed, num_blocks=None):
    sequence = Sequence(make_request(1, range(num_computed + 1)))
    sequence.num_computed = num_computed
    sequence.block_table.extend(pool.allocate(num_blocks or pool.blocks_for(num_computed)))
    sequence.status = SequenceStatus.RUNNING
    return sequence


def test_on_the_way_out_blocks_and_slots_belong_to_the_transfer_and_then_the_blocks_are_free():
    pool, swapper = make_swapper()
    sequence = running(pool, 9)
    blocks = tuple(sequence.block_table)
    transfer = swapper.begin_out(sequence)
    assert (transfer.outward, transfer.tier, transfer.blocks, len(transfer.slots)) == (True, Tier.HOST, blocks, 3)
    assert (sequence.status, sequence.block_table, sequence.num_computed) == (SequenceStatus.SWAPPED, [], 9)
    assert (pool.num_free, swapper.slots[Tier.HOST].num_free, swapper.num_leaving) == (7, 1, 3)
    assert swapper.end(TransferEnded(transfer.number, 0.1)) is sequence
    assert (pool.num_free, swapper.slots[Tier.HOST].num_free, swapper.num_leaving) == (10, 1, 0)
    assert swapper.stored == {sequence: Stored(Tier.HOST, transfer.slots)}


def test_on_the_way_in_it_does_not_run_and_then_has_blocks_for_all_it_has_computed():
    pool, swapper = make_swapper()
    sequence = running(pool, 9)
    out = swapper.begin_out(sequence)
    swapper.end(TransferEnded(out.number, 0.1))
    transfer = swapper.begin_in(sequence)
    assert (transfer.outward, transfer.slots, len(transfer.blocks)) == (False, out.slots, 3)
    assert (sequence.status, len(swapper.arriving(sequence)), pool.num_free) == (SequenceStatus.SWAPPED, 3, 7)
    assert swapper.slots[Tier.HOST].num_free == 1
    assert swapper.end(TransferEnded(transfer.number, 0.1)) is sequence
    assert (sequence.status, sequence.block_table) == (SequenceStatus.RUNNING, list(transfer.blocks))
    assert (swapper.slots[Tier.HOST].num_free, swapper.num_swapped) == (4, 0)


def test_only_blocks_with_computed_tokens_are_copied_and_all_come_free():
    pool, swapper = make_swapper()
    sequence = running(pool, 5, num_blocks=6)
    transfer = swapper.begin_out(sequence)
    assert (len(transfer.blocks), pool.num_free) == (2, 4)
    swapper.end(TransferEnded(transfer.number, 0.1))
    assert pool.num_free == 10


def test_a_block_that_others_share_is_copied_and_stays_theirs():
    pool, swapper = make_swapper()
    sequence = running(pool, 8)
    other = list(sequence.block_table)
    pool.share(other)
    transfer = swapper.begin_out(sequence)
    assert [pool.ref_count(block) for block in other] == [2, 2], "who writes to it meanwhile takes a copy"
    swapper.end(TransferEnded(transfer.number, 0.1))
    assert [pool.ref_count(block) for block in other] == [1, 1]


def test_what_the_first_tier_has_no_room_for_goes_to_the_next_and_no_further():
    assert first_tier({Tier.HOST: 4, Tier.FILE: 8}, 4) is Tier.HOST
    assert first_tier({Tier.HOST: 4, Tier.FILE: 8}, 5) is Tier.FILE
    assert first_tier({Tier.HOST: 4, Tier.FILE: 8}, 9) is None
    assert first_tier({Tier.HOST: 4, Tier.FILE: 8}, 0) is None
    pool, swapper = make_swapper(host=1, file=2)
    assert swapper.begin_out(running(pool, 8)).tier is Tier.FILE
    with pytest.raises(MemoryError, match="no tier has 2 free slots"):
        swapper.begin_out(running(pool, 8))


@pytest.mark.parametrize("inward", [False, True], ids=["out", "in"])
@pytest.mark.parametrize("error", [None, "disk"])
def test_a_sequence_that_ends_on_its_way_frees_blocks_and_slots_when_the_copy_has_ended(inward, error):
    pool, swapper = make_swapper()
    sequence = running(pool, 9)
    transfer = swapper.begin_out(sequence)
    if inward:
        swapper.end(TransferEnded(transfer.number, 0.1))
        transfer = swapper.begin_in(sequence)
    swapper.forget(sequence)
    assert (pool.num_free, swapper.slots[Tier.HOST].num_used, swapper.num_swapped) == (7, 3, 0)
    assert swapper.end(TransferEnded(transfer.number, 0.1, error)) is None
    assert (pool.num_free, swapper.slots[Tier.HOST].num_used) == (10, 0)


def test_a_sequence_that_ends_in_a_tier_frees_its_slots_at_once():
    pool, swapper = make_swapper()
    sequence = running(pool, 9)
    swapper.end(TransferEnded(swapper.begin_out(sequence).number, 0.1))
    swapper.forget(sequence)
    assert (swapper.slots[Tier.HOST].num_free, swapper.stored) == (4, {})


def test_what_could_not_be_copied_out_stays_in_the_pool_and_the_tier_gets_no_more():
    pool, swapper = make_swapper()
    sequence = running(pool, 9)
    blocks = list(sequence.block_table)
    transfer = swapper.begin_out(sequence)
    assert swapper.end(TransferEnded(transfer.number, 0.1, "no space")) is sequence
    assert (sequence.status, sequence.block_table, sequence.num_computed) == (SequenceStatus.RUNNING, blocks, 9)
    assert (swapper.slots[Tier.HOST].num_used, swapper.room()) == (0, {Tier.HOST: 0, Tier.FILE: 8})


def test_what_could_not_be_copied_back_is_computed_again():
    pool, swapper = make_swapper()
    sequence = running(pool, 9)
    swapper.end(TransferEnded(swapper.begin_out(sequence).number, 0.1))
    transfer = swapper.begin_in(sequence)
    assert swapper.end(TransferEnded(transfer.number, 0.1, "unreadable")) is sequence
    assert (sequence.status, sequence.block_table, sequence.num_computed) == (SequenceStatus.WAITING, [], 0)
    assert (pool.num_free, swapper.num_swapped, swapper.counts.failures) == (10, 0, 1)


def test_what_moves_is_counted():
    pool, swapper = make_swapper(host=2, file=8)
    sequence = running(pool, 9)
    swapper.end(TransferEnded(swapper.begin_out(sequence).number, 0.1))
    swapper.begin_in(sequence)
    counts = swapper.counts
    assert (counts.outs, counts.ins, counts.blocks_out, counts.blocks_in, counts.file_moves) == (1, 1, 3, 3, 2)
