"""What blocks from the prefix cache cost: those that somebody holds nothing, those that nobody holds as much as new ones."""

from __future__ import annotations

from fastserve.core.invariants import violations
from tests.doubles import make_engine, make_request, run_to_end

TEXT = tuple(range(40, 60))  # five blocks of 4


def cached_engine(num_blocks, **settings):
    """Its pool holds TEXT, in blocks that nobody holds; the others are blank."""
    engine = make_engine(num_blocks=num_blocks, max_batched_tokens=32, **settings)
    run_to_end(engine, [make_request(100, TEXT, max_tokens=1)])
    assert (engine.scheduler.pool.num_cached, engine.scheduler.pool.num_free) == (5, num_blocks)
    return engine


def planned(engine):
    plan = engine.scheduler.plan(0.0)
    return {chunk.sequence.request.request_id: (len(chunk.cached_blocks), chunk.num_tokens) for chunk in plan.chunks}


def step(engine, times=1):
    for _ in range(times):
        engine.step()
        assert violations(engine.scheduler) == []


def test_two_that_take_over_the_same_idle_blocks_take_them_once():
    engine = cached_engine(8)  # 5 cached, 1 new each, 1 to spare for the first
    for number in (1, 2):
        engine.submit(make_request(number, (*TEXT, number), max_tokens=4))
    assert planned(engine) == {1: (5, 1), 2: (5, 1)}
    step(engine)
    assert engine.scheduler.pool.num_used == 7


def test_idle_blocks_that_are_taken_over_are_room_that_is_gone():
    for num_blocks, admitted in ((8, {1}), (9, {1, 2})):
        engine = cached_engine(num_blocks)
        engine.submit(make_request(1, range(8), max_tokens=4))  # 2 new, and 1 to spare
        engine.submit(make_request(2, (*TEXT, 1), max_tokens=4))  # 5 cached, 1 new
        assert planned(engine).keys() == admitted
        step(engine)


def test_blocks_that_are_held_cost_a_waiting_sequence_nothing():
    engine = cached_engine(8)
    engine.submit(make_request(1, (*TEXT, 1), max_tokens=4))
    step(engine)
    engine.submit(make_request(2, (*TEXT, 2), max_tokens=4))
    assert planned(engine) == {1: (0, 1), 2: (5, 1)}  # 2 blocks are free


def test_what_a_more_urgent_step_needs_is_evicted_and_what_is_left_is_taken_over():
    """The first request is admitted whatever it needs: 4 of 6 blocks. Of the text's 5 the first 2 are left."""
    engine = cached_engine(6)
    engine.submit(make_request(1, range(13), max_tokens=1))
    engine.submit(make_request(2, (*TEXT[:8], 1), max_tokens=1))
    assert planned(engine) == {1: (0, 13)}  # no room for the second beside what it would take over
    step(engine)
    assert planned(engine) == {2: (2, 1)}


def test_the_blocks_of_one_that_gives_way_go_to_the_one_that_takes_them_over():
    engine = make_engine(num_blocks=8, max_batched_tokens=32, policy="priority")
    engine.submit(make_request(1, TEXT, max_tokens=9, priority=5))
    step(engine, 2)
    assert engine.scheduler.pool.num_used == 6
    engine.submit(make_request(2, (*TEXT, *range(12)), max_tokens=1))
    plan = engine.scheduler.plan(0.0)
    assert [sequence.request.request_id for sequence in plan.preempted] == [1]
    assert planned(engine) == {2: (5, 12)}
    step(engine)


def test_a_block_that_several_hold_takes_room_once():
    """The first two hold 7 blocks of 12, 5 of them together: the third gives way to one that needs 3, and 2 to spare."""
    engine = make_engine(num_blocks=12, max_batched_tokens=32, policy="priority")
    engine.submit(make_request(3, range(17), max_tokens=6, priority=5))
    step(engine)
    for number in (1, 2):
        engine.submit(make_request(number, (*TEXT, number), max_tokens=4))
        step(engine)
    assert (engine.scheduler.pool.num_used, len(engine.scheduler.holders)) == (12, 3)
    engine.submit(make_request(4, range(30, 41), max_tokens=1, priority=1))
    assert planned(engine) == {1: (0, 1), 2: (0, 1), 4: (0, 11)}
    step(engine)


def test_the_queue_behind_the_first_that_is_not_admitted_is_not_looked_up():
    engine = cached_engine(6)
    engine.submit(make_request(1, range(20), max_tokens=1))
    for number in range(2, 50):
        engine.submit(make_request(number, TEXT, max_tokens=1))
    looked_up = []
    match = engine.scheduler.prefix_cache.match
    engine.scheduler.prefix_cache.match = lambda sequence: (looked_up.append(sequence.request.request_id), match(sequence))[1]
    engine.scheduler.plan(0.0)
    assert looked_up == [1, 2]
