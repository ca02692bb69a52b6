"""The scheduler: budgets, order, admission, preemption, and the transaction around a step."""

from __future__ import annotations

import pytest

from fastserve.core.admission import QueueLimits
from fastserve.core.attention_windows import EVERYTHING
from fastserve.core.block_pool import BlockPool
from fastserve.core.invariants import violations
from fastserve.core.plan import SampledToken
from fastserve.core.policy.fcfs import FirstComeFirstServed
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import FinishReason
from fastserve.core.scheduler import Scheduler
from fastserve.core.sequence import SequenceStatus
from fastserve.core.step_limits import StepLimits
from fastserve.errors import InvalidRequest, QueueFull, RequestTooLong, StepFailed
from tests.doubles import collect, make_request


def make_scheduler(
    num_blocks=64,
    block_size=4,
    max_num_seqs=4,
    max_batched_tokens=16,
    max_model_len=128,
    pair_tokens=0.0,
    windows=EVERYTHING,
    **queue,
):
    return Scheduler(
        StepLimits(max_num_seqs, max_batched_tokens, pair_tokens, windows),
        PrefixCache(BlockPool(num_blocks, block_size), mode="off"),
        FirstComeFirstServed(),
        max_model_len=max_model_len,
        queue=QueueLimits(queue.get("max_queue_size", 100), queue.get("max_queue_size_per_tenant", 0)),
    )


def step(scheduler, now=0.0, token_id=1):
    """Plan and commit one iteration in which every sampling sequence draws ``token_id``."""
    plan = scheduler.plan(now)
    with scheduler.reserve(plan) as reservation:
        events = reservation.commit([SampledToken(token_id)] * len(plan.sampling), started=now, ended=now)
    assert violations(scheduler) == []
    return plan, events


def chunks(plan):
    return [(chunk.sequence.request.request_id, chunk.num_tokens, chunk.samples) for chunk in plan.chunks]


def test_a_long_prompt_is_cut_into_chunks_and_samples_only_with_the_last_one():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, range(40)), 0.0)
    plans = [chunks(step(scheduler)[0]) for _ in range(4)]
    assert plans == [[(1, 16, False)], [(1, 16, False)], [(1, 8, True)], [(1, 1, True)]]


def test_decodes_come_before_prefill_so_a_long_prompt_stalls_nobody():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, range(4)), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(60)), 0.0)
    scheduler.add(make_request(3, range(4)), 0.0)
    assert chunks(step(scheduler)[0]) == [(1, 1, True), (2, 15, False)]
    assert chunks(step(scheduler)[0]) == [(1, 1, True), (2, 15, False)]


def test_an_older_prefill_leaves_a_token_for_every_younger_decode():
    scheduler = make_scheduler(num_blocks=200, max_batched_tokens=8)
    scheduler.add(make_request(1, range(100)), 0.0)
    scheduler.sequences[0].num_computed = 0
    scheduler.add(make_request(2, [1]), 0.0)
    younger = scheduler.sequences[1]
    younger.block_table.extend(scheduler.pool.allocate(1))
    younger.status = SequenceStatus.RUNNING
    assert chunks(scheduler.plan(0.0)) == [(1, 7, False), (2, 1, True)]


def test_prompts_of_several_requests_share_the_token_budget_in_order_of_arrival():
    scheduler = make_scheduler()
    for request_id, size in ((1, 5), (2, 6), (3, 50), (4, 2)):
        scheduler.add(make_request(request_id, range(size)), 0.0)
    assert chunks(step(scheduler)[0]) == [(1, 5, True), (2, 6, True), (3, 5, False)]


def test_no_more_than_max_num_seqs_take_part():
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in range(5):
        scheduler.add(make_request(request_id, [1, 2]), 0.0)
    assert [chunk[0] for chunk in chunks(step(scheduler)[0])] == [0, 1]
    assert len(scheduler.holders) == 2


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_blocks():
    scheduler = make_scheduler(num_blocks=10)
    scheduler.add(make_request(1, range(16), max_tokens=4), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(30), max_tokens=2), 0.0)
    scheduler.add(make_request(3, [1], max_tokens=1), 0.0)
    assert [chunk[0] for chunk in chunks(step(scheduler)[0])] == [1]


def test_a_full_pool_preempts_the_youngest_and_the_oldest_goes_on():
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    scheduler.add(make_request(1, range(4), max_tokens=12), 0.0)
    scheduler.add(make_request(2, range(4), max_tokens=12), 0.0)
    preempted = []
    outcomes = {}
    while len(scheduler):
        plan, events = step(scheduler)
        preempted += [sequence.request.request_id for sequence in plan.preempted]
        collect(events, outcomes)
    assert set(preempted) == {2}
    assert {key: len(outcome.token_ids) for key, outcome in outcomes.items()} == {1: 12, 2: 12}
    assert scheduler.num_preemptions == len(preempted)
    assert scheduler.pool.num_free == 4


def test_a_preempted_sequence_keeps_its_tokens_and_computes_them_again():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, range(6), max_tokens=9), 0.0)
    step(scheduler, token_id=50)
    step(scheduler, token_id=51)
    (sequence,) = scheduler.sequences
    scheduler.preempt(sequence)
    assert (sequence.num_computed, sequence.block_table, sequence.status) == (0, [], SequenceStatus.WAITING)
    assert sequence.tokens(0, 8) == [0, 1, 2, 3, 4, 5, 50, 51]
    assert chunks(step(scheduler)[0]) == [(1, 8, True)]


def test_planning_changes_nothing():
    scheduler = make_scheduler(num_blocks=4)
    for request_id in (1, 2):
        scheduler.add(make_request(request_id, range(4), max_tokens=12), 0.0)
    for _ in range(5):
        step(scheduler)
    before = [(s.num_computed, list(s.block_table), s.status) for s in scheduler.sequences]
    assert chunks(scheduler.plan(0.0)) == chunks(scheduler.plan(0.0))
    assert before == [(s.num_computed, list(s.block_table), s.status) for s in scheduler.sequences]


def test_a_reservation_that_is_not_committed_gives_everything_back():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, range(20)), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(3)), 0.0)
    before = [(s.num_computed, list(s.block_table), s.status) for s in scheduler.sequences]
    free = scheduler.pool.blank_blocks()
    with pytest.raises(StepFailed), scheduler.reserve(scheduler.plan(0.0)):
        assert scheduler.pool.num_free < len(free)
        raise StepFailed("the run failed")
    assert [(s.num_computed, list(s.block_table), s.status) for s in scheduler.sequences] == before
    assert scheduler.pool.blank_blocks() == free
    assert violations(scheduler) == []


def test_an_error_in_a_tokens_place_ends_that_request_alone():
    scheduler = make_scheduler()
    for request_id in (1, 2):
        scheduler.add(make_request(request_id, range(3)), 0.0)
    plan = scheduler.plan(0.0)
    with scheduler.reserve(plan) as reservation:
        outcomes = collect(reservation.commit([StepFailed("bad row"), SampledToken(5)], started=0.0, ended=0.0))
    assert isinstance(outcomes[1].endings[0], StepFailed)
    assert (outcomes[2].token_ids, outcomes[2].endings) == ([5], [])
    assert [s.request.request_id for s in scheduler.sequences] == [2]
    assert violations(scheduler) == []


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        ({"max_tokens": 3}, [7, 7, 7], FinishReason.LENGTH),
        ({"max_tokens": 9, "stop_token_ids": frozenset({8})}, [7, 8], FinishReason.STOP),
        ({"max_tokens": 2, "stop_token_ids": frozenset({8})}, [7, 8], FinishReason.STOP),
    ],
)
def test_a_sequence_ends_by_length_or_by_a_stop_token(params, tokens, reason):
    scheduler = make_scheduler()
    scheduler.add(make_request(1, range(3), **params), 0.0)
    events = []
    for token_id in tokens:
        events += step(scheduler, token_id=token_id)[1]
    assert [event.finish_reason for event in events] == [None] * (len(tokens) - 1) + [reason]
    assert len(scheduler) == 0
    assert scheduler.pool.num_used == 0


def test_the_models_own_limit_ends_a_sequence():
    scheduler = make_scheduler(max_model_len=10)
    scheduler.add(make_request(1, range(8), max_tokens=100), 0.0)
    events = [event for _ in range(2) for event in step(scheduler)[1]]
    assert [event.finish_reason for event in events] == [None, FinishReason.LENGTH]


def test_a_prompt_as_long_as_the_model_allows_is_refused_with_both_numbers():
    with pytest.raises(RequestTooLong, match=r"prompt: got '128 tokens', allowed: at most 127"):
        make_scheduler().add(make_request(1, range(128)), 0.0)


def test_a_request_that_could_never_fit_the_pool_is_refused_with_both_numbers():
    scheduler = make_scheduler(num_blocks=5, block_size=4)
    scheduler.add(make_request(1, range(10), max_tokens=11), 0.0)  # 20 slots: the last token needs none
    with pytest.raises(RequestTooLong, match=r"prompt \+ max_tokens: got '22 tokens \(6 KV blocks\)'.*20 tokens \(5 blocks\)"):
        scheduler.add(make_request(2, range(10), max_tokens=12), 0.0)


def test_a_full_queue_refuses_and_says_how_long_it_is():
    scheduler = make_scheduler(max_queue_size=2)
    for request_id in (1, 2):
        scheduler.add(make_request(request_id, [1]), 0.0)
    with pytest.raises(QueueFull, match="2 requests, max_queue_size is 2"):
        scheduler.add(make_request(3, [1]), 0.0)
    assert len(scheduler) == 2


def test_one_tenant_cannot_fill_the_queue_of_the_others():
    scheduler = make_scheduler(max_queue_size=5, max_queue_size_per_tenant=2)
    requests = [make_request(request_id, [1], tenant=tenant) for request_id, tenant in enumerate(("ada", "ada", "bob", ""))]
    for request in requests:
        scheduler.add(request, 0.0)
    with pytest.raises(QueueFull, match="queue of tenant 'ada' is full: 2 requests, max_queue_size_per_tenant is 2"):
        scheduler.add(make_request(9, [1], tenant="ada"), 0.0)
    scheduler.abort(0)
    scheduler.add(make_request(10, [1], tenant="ada"), 0.0)
    with pytest.raises(QueueFull, match="tenant 'ada'"):
        scheduler.add(make_request(11, [1], tenant="ada"), 0.0)


def test_aborting_frees_the_blocks_at_once_and_twice_is_harmless():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, range(20)), 0.0)
    step(scheduler)
    assert scheduler.pool.num_used == 4
    assert scheduler.abort(1)
    assert not scheduler.abort(1)
    assert (scheduler.pool.num_used, len(scheduler)) == (0, 0)


def test_deadlines_end_requests_in_time_and_ended_requests_do_not_expire():
    scheduler = make_scheduler()
    for request_id, deadline in ((1, 5.0), (2, 3.0), (3, None), (4, 2.0)):
        scheduler.add(make_request(request_id, [1], deadline=deadline), 0.0)
    scheduler.abort(4)
    assert scheduler.expired(2.9) == []
    assert scheduler.expired(5.0) == [2, 1]
    assert [s.request.request_id for s in scheduler.sequences] == [3]


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(InvalidRequest, match="prompt: got"):
        make_scheduler().add(make_request(1, []), 0.0)


def test_deadlines_of_ended_requests_do_not_pile_up():
    scheduler = make_scheduler()
    for request_id in range(1000):
        scheduler.add(make_request(request_id, [1], deadline=1e9), 0.0)
        if request_id != 500:
            scheduler.abort(request_id)
    assert len(scheduler._deadlines) < 100
    assert scheduler.expired(2e9) == [500]


def test_a_chunk_takes_what_room_there_is_when_only_more_urgent_sequences_hold_blocks():
    scheduler = make_scheduler(num_blocks=5, block_size=4)
    scheduler.add(make_request(1, range(11), max_tokens=8), 0.0)
    step(scheduler)
    scheduler.add(make_request(2, range(12), max_tokens=1), 0.0)
    waiting = scheduler.sequences[1]
    waiting.block_table.extend(scheduler.pool.allocate(1))
    waiting.status = SequenceStatus.RUNNING
    assert chunks(scheduler.plan(0.0)) == [(1, 1, True), (2, 8, False)]
