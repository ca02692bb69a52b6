"""The golden property over random schedules: a request's tokens are the same alone, batched, chunked and preempted,
whatever its neighbours do, and every request ends exactly once."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter

import pytest

from fastserve.config import POLICIES
from fastserve.core.invariants import violations
from fastserve.core.request import FinishReason, Request
from fastserve.core.sequence import SequenceStatus
from fastserve.errors import DeadlineExceeded, FastServeError, QueueFull, RequestTooLong, StepFailed
from tests.doubles import VOCAB_SIZE, FakeClock, HashingRunner, Outcome, collect, make_engine, make_request, run_to_end

NUM_REQUESTS = 60
SEEDS = range(25)
SEEDS_OF_ONE_POLICY = range(5)


def random_request(rng, request_id, now):
    params = {"max_tokens": rng.randint(1, 40), "stop_token_ids": frozenset(rng.sample(range(VOCAB_SIZE), rng.choice((0, 2))))}
    if rng.random() < 0.5:
        params |= {"temperature": rng.choice((0.3, 1.0, 2.0)), "top_k": rng.choice((0, 5)), "seed": rng.getrandbits(64)}
    if rng.random() < 0.3:
        params |= {"repetition_penalty": 1.3, "presence_penalty": 0.5}
    if params["stop_token_ids"] and rng.random() < 0.5:
        params["min_tokens"] = rng.randint(0, params["max_tokens"])
    if rng.random() < 0.3:
        params["bad_words"] = ((rng.randrange(VOCAB_SIZE),), (rng.randrange(VOCAB_SIZE), rng.randrange(VOCAB_SIZE)))
    params["n"] = rng.choice((1, 1, 1, 2, 5))
    params["return_logprobs"] = rng.random() < 0.2
    params["logprobs"] = rng.choice((None, None, 0, 3))
    params["prompt_logprobs"] = rng.choice((None, None, 0, 2))
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 3, 4, 5, 17, 60, 130)))]
    deadline = now + rng.uniform(0.0, 30.0) if rng.random() < 0.1 else None
    request = make_request(request_id, prompt, deadline=deadline, **params)
    return dataclasses.replace(request, tenant=rng.choice(("ada", "bob", "eve")))


@functools.cache
def run_alone(prompt_token_ids, params):
    """One request, a roomy pool, the whole prompt at once."""
    engine = make_engine(num_blocks=400, max_batched_tokens=200)
    return run_to_end(engine, [Request(0, prompt_token_ids, params)])[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_do_not_depend_on_the_schedule_and_every_request_ends_once(seed):
    assert run_schedule(seed).total() >= NUM_REQUESTS


@pytest.mark.parametrize("seed", SEEDS_OF_ONE_POLICY)
@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in ("fcfs", "auto")])
def test_they_do_not_depend_on_the_policy_either(policy, seed):
    assert run_schedule(1000 + seed, policy).total() >= NUM_REQUESTS


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "auto"])
def test_under_every_policy_the_random_schedules_preempt_and_abort(policy):
    first = 0 if policy == "fcfs" else 1000
    seen = sum((run_schedule(first + seed, policy) for seed in SEEDS_OF_ONE_POLICY), Counter())
    assert seen["preemptions"] > 0
    assert seen["aborted"] > 0


def test_the_random_schedules_see_every_kind_of_event():
    seen = sum((run_schedule(seed) for seed in SEEDS), Counter())
    for kind in (
        "preemptions",
        "preempted siblings",
        "copied blocks",
        "FinishReason.STOP",
        "FinishReason.LENGTH",
        "aborted",
        "DeadlineExceeded",
        "QueueFull",
        "StepFailed",
    ):
        assert seen[kind] > 0, f"no {kind} in {dict(seen)}"


@functools.cache
def run_schedule(seed, policy="fcfs"):
    """Runs a schedule, checking after every step; returns how often each kind of event was seen."""
    rng = random.Random(seed)
    clock, runner, seen = FakeClock(), HashingRunner(), Counter()
    engine = make_engine(
        runner,
        num_blocks=rng.choice((36, 44, 80)),
        max_num_seqs=rng.choice((1, 4, 16)),
        max_batched_tokens=rng.choice((16, 24, 64)),
        max_queue_size=rng.choice((10, 100)),
        policy=policy,
        clock=clock,
    )
    copy_blocks = engine._kv_cache.copy_blocks
    engine._kv_cache.copy_blocks = lambda copies: (seen.update({"copied blocks": len(copies)}), copy_blocks(copies))
    arrivals = [random_request(rng, request_id, 0.0) for request_id in range(NUM_REQUESTS)]
    if policy == "priority":
        arrivals = [dataclasses.replace(request, priority=rng.choice((-1, 0, 5))) for request in arrivals]
    requests, outcomes, events, cut = {}, {}, [], set()
    while arrivals or engine.has_work:
        clock.advance(rng.choice((0.0, 0.1, 1.0)))
        for _ in range(rng.choice((0, 0, 1, 3, 10)) if arrivals else 0):
            if arrivals:
                request = arrivals.pop()
                requests[request.request_id] = request
                events += engine.submit(request)
        if requests and rng.random() < 0.05:
            events += engine.abort(rng.choice(list(requests)))
        if requests and rng.random() < 0.05:
            chosen = rng.choice(list(requests.values()))
            index = rng.randrange(chosen.params.n)
            if len(collect(events).get(chosen.request_id, Outcome()).answer(index).token_ids):  # it has begun
                events += engine.abort(chosen.request_id, index)
                cut.add((chosen.request_id, index))
        if rng.random() < 0.05:
            runner.failures.append(StepFailed("injected", retryable=rng.random() < 0.7))
        if engine.has_work:
            siblings = [sequence for sequence in engine.scheduler.sequences if sequence.index and sequence.block_table]
            events += engine.step()
            seen["preempted siblings"] += sum(sequence.status is SequenceStatus.WAITING for sequence in siblings)
        assert violations(engine.scheduler) == []
        check_order(engine.scheduler, clock.now)
    collect(events, outcomes)
    assert engine.scheduler.pool.num_used == 0
    seen["preemptions"] = engine.stats().preemptions
    assert sorted(outcomes) == list(range(NUM_REQUESTS))
    for request_id, outcome in outcomes.items():
        assert outcome.num_endings == 1, f"request {request_id} ended {outcome.num_endings} times"
        seen[check_outcome(requests[request_id], outcome, cut)] += 1
    return seen


def check_order(scheduler, now):
    """The order is total, does not change by asking, and is the same from both ends, also for those that hold blocks."""
    ordered = list(scheduler.policy.ordered(now))
    assert len(ordered) == len(set(ordered)) == len(scheduler.sequences)
    assert list(scheduler.policy.ordered(now)) == ordered
    assert list(scheduler.policy.least_urgent(scheduler.sequences, now)) == ordered[::-1]
    holding = [sequence for sequence in ordered if sequence in scheduler.holders]
    assert list(scheduler.policy.least_urgent(scheduler.holders, now)) == holding[::-1]


def check_outcome(request, outcome, cut):
    """Holds an outcome against the same request alone; returns the name of its ending. ``cut``: the answers that were ended
    early, by request and index."""
    early = [ending for ending in outcome.endings if not isinstance(ending, FinishReason)]
    endings = early or outcome.endings or ["withdrawn"]  # the first answer was, and the others ended by themselves
    name = type(endings[0]).__name__ if isinstance(endings[0], FastServeError) else str(endings[0])
    if early and isinstance(early[0], (QueueFull, RequestTooLong)):
        assert outcome.token_ids == []
        return name
    assert not early or early[0] == "aborted" or isinstance(early[0], (DeadlineExceeded, StepFailed))
    alone = run_alone(request.prompt_token_ids, request.params)
    for index in range(request.params.n):
        found, expected = outcome.answer(index), alone.answer(index)
        if not early and (request.request_id, index) not in cut:
            assert found.endings == expected.endings
            assert len(found.token_ids) == len(expected.token_ids)
        assert found.token_ids == expected.token_ids[: len(found.token_ids)]
        assert found.logprobs == expected.logprobs[: len(found.token_ids)]
    assert outcome.prompt_logprobs == alone.prompt_logprobs[: len(outcome.prompt_logprobs)]
    assert not outcome.token_ids or outcome.prompt_logprobs == alone.prompt_logprobs
    single = run_alone(request.prompt_token_ids, dataclasses.replace(request.params, n=1))
    assert (single.token_ids, single.logprobs) == (alone.token_ids, alone.logprobs)
    assert single.prompt_logprobs == alone.prompt_logprobs
    return name
