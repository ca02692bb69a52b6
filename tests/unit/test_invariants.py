"""The invariants themselves: each one notices the damage it is there for."""

from __future__ import annotations

import pytest

from fastserve.core.invariants import violations
from fastserve.core.plan import StepPlan
from fastserve.core.sequence import SequenceStatus
from fastserve.core.swapper import Tier, TransferEnded
from tests.doubles import make_engine, make_request


def running_scheduler():
    engine = make_engine()
    for request_id in (1, 2):
        engine.submit(make_request(request_id, range(6), max_tokens=8))
    engine.step()
    engine.step()
    return engine.scheduler


def swapping_scheduler():
    """One of two sequences is at rest in the host tier, the other on its way there."""
    engine = make_engine(num_slots={Tier.HOST: 20})
    for request_id in (1, 2):
        engine.submit(make_request(request_id, range(6), max_tokens=8))
    engine.step()
    scheduler = engine.scheduler
    first, second = scheduler.sequences
    for transfer in scheduler.begin_swaps(StepPlan((), swapped_out=(first,))):
        scheduler.end_swap(TransferEnded(transfer.number, 0.1))
    scheduler.begin_swaps(StepPlan((), swapped_out=(second,)))
    return scheduler


def free_a_block_in_flight(scheduler):
    (moving,) = scheduler.swapper.in_flight.values()
    scheduler.pool.release(moving.held[:1])


def read_a_block_in_flight(scheduler):
    (moving,) = scheduler.swapper.in_flight.values()
    scheduler.sequences[1].block_table.append(moving.held[0])


def give_a_slot_twice(scheduler):
    (stored,) = scheduler.swapper.stored.values()
    scheduler.swapper.slots[Tier.HOST].release(stored.slots[:1])


def lose_a_slot(scheduler):
    scheduler.swapper.slots[Tier.HOST].allocate(1)


def forget_who_is_swapped(scheduler):
    scheduler.swapper.stored.clear()


def forget_who_moves(scheduler):
    scheduler.swapper.moving.clear()


def lose_the_tail(scheduler):
    scheduler.sequences[0].num_computed += 4


def lose_a_block(scheduler):
    scheduler.sequences[0].block_table.pop()


def hold_a_free_block(scheduler):
    scheduler.sequences[0].block_table.append(scheduler.pool.blank_blocks()[0])


def share_without_counting(scheduler):
    first, second = scheduler.sequences
    second.block_table[0] = first.block_table[0]


def share_with_a_stranger(scheduler):
    first, second = scheduler.sequences
    scheduler.pool.share(first.block_table[1:])
    scheduler.pool.release(second.block_table[1:])
    second.block_table[1] = first.block_table[1]


def claim_too_many_computed(scheduler):
    scheduler.sequences[0].num_computed = 1000


def wait_with_blocks(scheduler):
    scheduler.sequences[0].status = SequenceStatus.WAITING


def finish_without_leaving(scheduler):
    scheduler.sequences[0].status = SequenceStatus.FINISHED


def hoard(scheduler):
    scheduler.sequences[0].block_table.extend(scheduler.pool.allocate(3))


def overrun(scheduler):
    scheduler.sequences[0].output_token_ids.extend([1] * 20)


def find_what_is_being_written(scheduler):
    scheduler.pool.register(scheduler.sequences[0].block_table[1], b"half")


def find_what_is_not_computed(scheduler):
    scheduler.sequences[0].num_computed = 3


def find_something_else(scheduler):
    scheduler.sequences[0].block_digests[0] = b"other"


def evict_what_is_held(scheduler):
    scheduler.pool._cached[scheduler.sequences[0].block_table[0]] = None


def give_two_blocks_the_same_contents(scheduler):
    first, second = scheduler.sequences
    scheduler.pool._digests[second.block_table[0]] = scheduler.pool.digest(first.block_table[0])


def keep_the_contents_of_a_blank_block(scheduler):
    scheduler.pool._digests[scheduler.pool.blank_blocks()[0]] = b"stale"


def cache_nothing(scheduler):
    scheduler.pool._cached[scheduler.pool._blank.pop()] = None


def hope_for_everything(scheduler):
    sequence = scheduler.sequences[0]
    sequence.num_cached = sequence.num_tokens


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_a_block, "references but stands in 0 block tables"),
        (hold_a_free_block, "are free and held at once"),
        (share_without_counting, "references but stands in 2 block tables"),
        (share_with_a_stranger, "is shared by requests {1, 2}"),
        (claim_too_many_computed, "has 1000 computed tokens in"),
        (wait_with_blocks, "is waiting with"),
        (finish_without_leaving, "is finished but still scheduled"),
        (hoard, "holds more blocks than its tokens need"),
        (overrun, "went past max_tokens"),
        (find_what_is_being_written, "is about to write to a block that others can find"),
        (find_what_is_not_computed, "can be found, but is not complete"),
        (find_something_else, "holds something else than its tokens"),
        (evict_what_is_held, "up for eviction, but held"),
        (give_two_blocks_the_same_contents, "two blocks have the same digest"),
        (give_two_blocks_the_same_contents, "is not found by its digest"),
        (keep_the_contents_of_a_blank_block, "are blank, but can be found"),
        (cache_nothing, "are cached, but cannot be found"),
        (hope_for_everything, "tokens from the prefix cache"),
    ],
)
def test_damage_is_noticed_and_named(damage, words):
    scheduler = running_scheduler()
    assert violations(scheduler) == []
    damage(scheduler)
    assert any(words in violation for violation in violations(scheduler)), violations(scheduler)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (free_a_block_in_flight, "has 0 references but stands in 0 block tables and 1 transfers"),
        (read_a_block_in_flight, "has 1 references but stands in 1 block tables and 1 transfers"),
        (give_a_slot_twice, "has 2 owners"),
        (lose_a_slot, "1 host slots are lost"),
        (forget_who_is_swapped, "2 sequences are swapped, 1 are in tiers or on their way"),
        (forget_who_moves, "of a sequence that does not know it"),
        (lose_the_tail, "has 10 computed tokens in 2 blocks"),
    ],
)
def test_damage_below_the_pool_is_noticed_and_named(damage, words):
    scheduler = swapping_scheduler()
    assert violations(scheduler) == []
    damage(scheduler)
    assert any(words in violation for violation in violations(scheduler)), violations(scheduler)
