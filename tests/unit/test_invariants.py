"""The invariants themselves: each one notices the damage it is there for."""

from __future__ import annotations

import pytest

from fastserve.core.invariants import violations
from fastserve.core.sequence import SequenceStatus
from tests.doubles import make_engine, make_request


def running_scheduler():
    engine = make_engine()
    for request_id in (1, 2):
        engine.submit(make_request(request_id, range(6), max_tokens=8))
    engine.step()
    engine.step()
    return engine.scheduler


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
