"""Beam search: the answers of a plain search over a model one can ask, whatever else is served; blocks are shared, and all beams
end together."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.core.beam_search import BeamCandidates
from fastserve.core.events import Failed, TokenEvent, is_ending
from fastserve.core.invariants import violations
from fastserve.core.request import FinishReason
from fastserve.errors import DeadlineExceeded, InvalidRequest, RequestTooLong, StepFailed
from fastserve.worker.beam_candidates import beam_candidates
from tests.doubles import FakeClock, collect, make_engine, make_request, run_to_end
from tests.hashing_runner import VOCAB_SIZE, HashingRunner, hash_logits

STOPS = frozenset(range(0, VOCAB_SIZE, 6))
PROMPT = range(10)


def beams(request_id=1, prompt=PROMPT, **params):
    return make_request(request_id, prompt, **({"num_beams": 4, "n": 4, "max_tokens": 9, "stop_token_ids": STOPS} | params))


def log_probabilities(context):
    row = hash_logits(context).astype(np.float64)
    return row - np.log(np.exp(row).sum())


def plain_search(prompt, params):
    """The best answers by a search that knows nothing of blocks, steps or neighbours: every continuation of every beam is
    listed. Token ids of each, the best first."""
    running, ended = [(0.0, ())], []
    for length in range(1, params.max_tokens + 1):
        listed = [
            (total + logprob, (*tokens, token))
            for total, tokens in running
            for token, logprob in enumerate(log_probabilities([*prompt, *tokens]))
        ]
        listed.sort(reverse=True)
        over = length == params.max_tokens
        best = listed[: params.num_beams]
        ended += [(total / length**params.length_penalty, tokens) for total, tokens in best if over or tokens[-1] in STOPS]
        ended = sorted(ended, reverse=True)[: params.num_beams]
        running = [item for item in listed if item[1][-1] not in STOPS][: params.num_beams]
        if len(ended) == params.num_beams and not over:
            reach = params.max_tokens if params.early_stopping == "never" and params.length_penalty > 0 else length
            over = params.early_stopping is True or running[0][0] / reach**params.length_penalty <= ended[-1][0]
        if over:
            break
    return [list(tokens) for _, tokens in ended[: params.n]]


def answers(outcome, count):
    return [outcome.answer(index).token_ids for index in range(count)]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("num_beams", [2, 4, 7])
def test_the_answers_are_those_of_a_plain_search_best_first(num_beams, length_penalty, early_stopping):
    for start in range(4):
        prompt = range(start, start + 5)
        given = {"num_beams": num_beams, "n": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
        request = beams(prompt=prompt, **given)
        (outcome,) = run_to_end(make_engine(), [request]).values()
        assert answers(outcome, num_beams) == plain_search(prompt, request.params)
        assert outcome.num_endings == 1


def test_fewer_answers_than_beams_are_the_best_of_them():
    (four,) = run_to_end(make_engine(), [beams()]).values()
    (two,) = run_to_end(make_engine(), [beams(n=2)]).values()
    assert answers(two, 2) == answers(four, 4)[:2]


def test_an_answer_that_drew_an_end_stopped_and_one_that_was_cut_did_not():
    (outcome,) = run_to_end(make_engine(), [beams(max_tokens=3)]).values()
    for index in range(4):
        answer = outcome.answer(index)
        assert answer.endings == [FinishReason.STOP if answer.token_ids[-1] in STOPS else FinishReason.LENGTH]
    assert {ending for index in range(4) for ending in outcome.answer(index).endings} == set(FinishReason)


def test_nothing_is_said_before_the_end_and_then_everything():
    engine = make_engine()
    events = engine.submit(beams(n=2, return_logprobs=True))
    while engine.has_work:
        assert events == []
        events += engine.step()
    assert all(isinstance(event, TokenEvent) for event in events)
    assert [event.index for event in events] == sorted(event.index for event in events)
    assert [is_ending(event) for event in events] == [False] * (len(events) - 1) + [True]
    for index in range(2):
        own = [event for event in events if event.index == index]
        tokens = [event.token_id for event in own]
        expected = sum(log_probabilities([*PROMPT, *tokens[:place]])[token] for place, token in enumerate(tokens))
        assert sum(event.logprob for event in own) == pytest.approx(expected, abs=1e-4)


def test_the_prompt_is_computed_once_and_full_blocks_are_shared():
    engine = make_engine()
    engine.submit(beams(prompt=range(12), max_tokens=5, stop_token_ids=frozenset()))
    engine.step()
    assert engine.scheduler.pool.num_used == 3 and len(engine.scheduler.sequences) == 4
    engine.step()
    assert engine.scheduler.pool.num_used <= 3 + 4
    assert len({tuple(sequence.block_table[:3]) for sequence in engine.scheduler.sequences}) == 1
    assert sum(batch.num_tokens for batch in engine._runner.batches) == 12 + 4


def test_beams_take_places_of_the_iteration_and_need_not_share_one():
    engine = make_engine(max_num_seqs=3)
    request = beams(num_beams=7, n=3)
    (outcome,) = run_to_end(engine, [request]).values()
    assert answers(outcome, 3) == plain_search(PROMPT, request.params)
    assert max(batch.num_rows for batch in engine._runner.batches) == 3


def test_they_are_the_same_in_a_crowd_that_preempts_them():
    requests = [
        beams(number, range(number, number + 3 + number % 7), num_beams=2 + number % 4, n=2, max_tokens=12)
        for number in range(10)
    ] + [make_request(100 + number, range(number, number + 9), max_tokens=20) for number in range(10)]
    engine = make_engine(num_blocks=26, max_num_seqs=9)
    events = [event for request in requests for event in engine.submit(request)]
    while engine.has_work:
        events += engine.step()
        assert violations(engine.scheduler) == []
    outcomes = collect(events)
    assert engine.stats().preemptions > 0
    for request in requests[:10]:
        assert answers(outcomes[request.request_id], 2) == plain_search(request.prompt_token_ids, request.params)


def test_a_failed_step_leaves_every_beam_as_it_was():
    runner = HashingRunner()
    engine = make_engine(runner)
    engine.submit(beams(stop_token_ids=frozenset()))
    for _ in range(3):
        engine.step()
    before = [(sequence.output_token_ids[:], sequence.block_table[:]) for sequence in engine.scheduler.sequences]
    runner.failures.append(StepFailed("injected", retryable=True))
    with pytest.raises(StepFailed):
        engine._execute(engine.scheduler.plan(0.0))
    assert [(sequence.output_token_ids, sequence.block_table) for sequence in engine.scheduler.sequences] == before
    assert violations(engine.scheduler) == []


@pytest.mark.parametrize("end", ["abort", "abort one", "deadline", "failure"])
def test_what_ends_one_beam_ends_the_request_once(end):
    clock, runner = FakeClock(), HashingRunner()
    engine = make_engine(runner, clock=clock)
    request = make_request(1, PROMPT, num_beams=4, max_tokens=30, deadline=5.0)
    events = engine.submit(request)
    for _ in range(4):
        events += engine.step()
    if end.startswith("abort"):
        events += engine.abort(1, 2 if end == "abort one" else None)
    elif end == "deadline":
        clock.advance(6.0)
        events += engine.step()
    else:
        runner.failures.append(StepFailed("injected"))
        events += engine.step()
    assert sum(map(is_ending, events)) == 1 and not engine.has_work
    assert engine.scheduler.pool.num_used == 0
    if end == "deadline":
        assert isinstance(events[-1].error, DeadlineExceeded)


def test_beams_that_cannot_fit_together_are_refused_with_both_numbers():
    engine = make_engine(num_blocks=16)  # of 4 tokens
    (event,) = engine.submit(beams(prompt=range(10), max_tokens=14, num_beams=4))  # 2 shared, 4 of each
    assert isinstance(event, Failed) and isinstance(event.error, RequestTooLong)
    assert "18 KV blocks for 4 beams" in str(event.error) and "(16 blocks)" in str(event.error)
    assert engine.submit(beams(prompt=range(10), max_tokens=14, num_beams=3)) == []


def test_answers_that_do_not_exist_are_not_invented():
    """Two tokens may be drawn, and one of them ends every answer: after the first step there is nothing else."""
    words = tuple((token,) for token in range(VOCAB_SIZE) if token != 6)
    (outcome,) = run_to_end(make_engine(), [beams(n=2, bad_words=words)]).values()
    (error,) = outcome.endings
    assert isinstance(error, InvalidRequest) and str(error).startswith("n: got 2, allowed: at most 1")


def test_beams_may_run_out_and_come_back():
    """Fewer continuations than beams: some rest without blocks until there are enough again."""
    request = beams(
        num_beams=5, n=3, max_tokens=6, bad_words=tuple((token,) for token in range(VOCAB_SIZE) if token not in (1, 2, 6))
    )
    engine = make_engine()
    events = engine.submit(request)
    while engine.has_work:
        events += engine.step()
        assert violations(engine.scheduler) == []
    (outcome,) = collect(events).values()
    assert all(set(outcome.answer(index).token_ids) <= {1, 2, 6} for index in range(3))


# --- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_are_the_likeliest_and_the_likeliest_that_end_nothing():
    row = np.array([-1.0, -2.0, -3.0, -4.0, -5.0, -np.inf], np.float32)
    params = beams(num_beams=2, stop_token_ids=frozenset({0, 2})).params
    assert beam_candidates(row, params) == BeamCandidates(((0, -1.0), (1, -2.0), (3, -4.0)))


def test_excluded_tokens_are_no_candidates():
    row = np.array([-np.inf, -2.0, -np.inf], np.float32)
    assert beam_candidates(row, beams(num_beams=3, stop_token_ids=frozenset()).params) == BeamCandidates(((1, -2.0),))


def test_beams_that_wait_for_nothing_or_are_missing_are_violations():
    engine = make_engine()
    engine.submit(beams())
    engine.step()
    (search,) = {sequence.search for sequence in engine.scheduler.sequences}
    assert violations(engine.scheduler) == []
    for beam in search.beams:
        beam.candidates = BeamCandidates(())
    assert "request 1 has nothing to wait for, but its beams rest" in violations(engine.scheduler)
    search.beams.pop()
    assert "the beams of request 1 are not its sequences" in violations(engine.scheduler)
    engine.scheduler.searches.clear()
    assert "the scheduler's list of beam searches is wrong" in violations(engine.scheduler)
