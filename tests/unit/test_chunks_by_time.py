"""Chunks of prompts beside decodes are bounded by time: a late one of a long prompt takes no longer than an early one."""

from __future__ import annotations

import random

import pytest

from fastserve.core.attention_windows import EVERYTHING, pairs_of
from fastserve.core.step_limits import LEAST_TOKENS
from tests.doubles import FakeClock, collect, make_engine, make_request
from tests.unit.test_scheduler import chunks, make_scheduler, step

PROMPT = 900
BUDGET = 64


def make_roomy_scheduler(pair_tokens, **others):
    return make_scheduler(
        num_blocks=1000, max_model_len=4000, max_batched_tokens=BUDGET, pair_tokens=pair_tokens, max_num_seqs=4, **others
    )


def chunks_of(scheduler, request_id):
    """Start and size of each chunk until the prompt is computed."""
    found = []
    while not found or not found[-1].samples:
        plan, _ = step(scheduler)
        found += [chunk for chunk in plan.chunks if chunk.sequence.request.request_id == request_id]
    return [(chunk.start, chunk.num_tokens) for chunk in found]


def test_the_longest_chunk_that_a_budget_pays_for_is_found():
    rng = random.Random(0)
    for _ in range(2000):
        budget, start, price = (
            rng.randrange(1, 600),
            rng.randrange(10_000),
            rng.choice((0.0, rng.uniform(0, 1e-2), rng.uniform(0, 9))),
        )
        longest = EVERYTHING.most_tokens(budget, start, price)
        costs = [size + price * pairs_of(start, size) for size in (longest, longest + 1)]
        assert costs[0] <= budget * (1 + 1e-9) and costs[1] > budget * (1 - 1e-9)


def test_where_contexts_cost_nothing_a_budget_is_so_many_tokens():
    assert [EVERYTHING.most_tokens(budget, 10_000, 0.0) for budget in (0, 1, 255, 256)] == [0, 1, 255, 256]


def test_beside_a_decode_every_chunk_takes_the_time_of_a_full_step_without_context_and_no_more():
    price = 1 / 400
    scheduler = make_roomy_scheduler(price)
    scheduler.add(make_request(1, [1], max_tokens=1000), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(PROMPT)), 0.0)
    sizes = chunks_of(scheduler, 2)
    assert sum(size for _, size in sizes) == PROMPT
    assert [size for _, size in sizes] == sorted((size for _, size in sizes), reverse=True)
    for start, size in sizes[:-1]:
        cost = size + price * pairs_of(start, size)
        assert cost <= BUDGET - 1 < cost + 1 + price * (start + size + 1)


def test_alone_a_prompt_takes_the_whole_budget_of_tokens():
    scheduler = make_roomy_scheduler(1 / 10)
    scheduler.add(make_request(1, range(PROMPT)), 0.0)
    assert {size for _, size in chunks_of(scheduler, 1)[:-1]} == {BUDGET}


def test_prompts_beside_each_other_take_the_whole_budget_while_nobody_decodes():
    scheduler = make_roomy_scheduler(1 / 10)
    for request_id in (1, 2):
        scheduler.add(make_request(request_id, range(BUDGET + 6)), 0.0)
    assert chunks(step(scheduler)[0]) == [(1, BUDGET, False)]
    assert chunks(step(scheduler)[0]) == [(1, 6, True), (2, BUDGET - 6, False)]


@pytest.mark.parametrize("price", [100.0, 1e6, 1e300])
def test_however_dear_contexts_are_the_most_urgent_prompt_gets_on_by_a_block(price):
    scheduler = make_roomy_scheduler(price)
    scheduler.add(make_request(1, [1], max_tokens=1000), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(100)), 0.0)
    scheduler.add(make_request(3, range(100)), 0.0)
    assert chunks(step(scheduler)[0])[:2] == [(1, 1, True), (2, 4, False)]
    assert [size for _, size in chunks_of(scheduler, 2)[:-1]] == [4] * 23


@pytest.mark.parametrize(("block_size", "least"), [(16, LEAST_TOKENS), (256, LEAST_TOKENS), (8, 8)])
def test_large_blocks_do_not_make_late_chunks_longer(block_size, least):
    scheduler = make_roomy_scheduler(100.0, block_size=block_size)
    scheduler.add(make_request(1, [1], max_tokens=1000), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(300)), 0.0)
    assert {size for _, size in chunks_of(scheduler, 2)[:-1]} == {least}


def test_prompts_share_the_time_in_their_order():
    price = 1 / 50
    scheduler = make_roomy_scheduler(price)
    scheduler.add(make_request(1, [1], max_tokens=1000), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(10)), 0.0)
    scheduler.add(make_request(3, range(PROMPT)), 0.0)
    left = BUDGET - 1 - (10 + price * pairs_of(0, 10))
    assert chunks(step(scheduler)[0]) == [(1, 1, True), (2, 10, True), (3, EVERYTHING.most_tokens(left, 0, price), False)]


def test_a_chunk_is_never_longer_than_the_tokens_left_though_a_block_is():
    scheduler = make_scheduler(num_blocks=100, max_batched_tokens=3, max_num_seqs=2, pair_tokens=1e9)
    scheduler.add(make_request(1, [1], max_tokens=100), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(9)), 0.0)
    assert chunks(step(scheduler)[0]) == [(1, 1, True), (2, 2, False)]


def test_an_engine_bounds_chunks_by_what_it_has_learned():
    clock = FakeClock()
    engine = make_engine(num_blocks=400, max_batched_tokens=BUDGET, max_model_len=1200, clock=clock)
    assert engine.scheduler.limits.pair_tokens == 0.0
    costs = engine.cost_model
    for number in range(costs.FIT_STEPS):
        clock.advance(1.0)
        engine.submit(make_request(number, range(number, number + 50), max_tokens=1))
        collect(engine.step())
    assert engine.scheduler.limits.pair_tokens == costs.pair_tokens
    assert engine.scheduler.limits.max_batched_tokens == BUDGET
