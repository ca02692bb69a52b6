"""What an answer has to look like: only allowed tokens are drawn, and its place moves with committed tokens and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.core.invariants import violations
from fastserve.core.request import FinishReason
from fastserve.core.sequence import Sequence
from fastserve.errors import InvalidRequest, StepFailed
from fastserve.worker.sampler import Sampler
from tests.constraint_doubles import SumConstraint
from tests.doubles import collect, make_engine, make_request, run_to_end
from tests.hashing_runner import VOCAB_SIZE, HashingRunner
from tests.sampling_oracle import process_logits

END = 90  # leaves no remainder: it may come up in the middle of an answer, too, unless it is forbidden there


def constrained(request_id=1, prompt=range(5), *, longest=8, shortest=3, start=1, **params):
    ends = params.setdefault("stop_token_ids", frozenset({END}))
    constraint = SumConstraint(longest, shortest, start=start, ends=ends)
    return make_request(request_id, prompt, **({"max_tokens": 20} | params), constraint=constraint)


def outputs(engine):
    return {sequence.index: list(sequence.output_token_ids) for sequence in engine.scheduler.sequences}


def taken(engine):
    return {sequence.index: sequence.constraint.taken for sequence in engine.scheduler.sequences}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_follows_its_constraint(seed, temperature):
    request = constrained(prompt=range(seed, seed + 5), temperature=temperature, seed=seed)
    (outcome,) = run_to_end(make_engine(), [request]).values()
    assert request.params.constraint.follows(outcome.token_ids)
    assert outcome.endings == [FinishReason.STOP]
    assert len(outcome.token_ids) == 8 or outcome.token_ids[-1] == END


def test_a_complete_answer_that_nothing_may_follow_stops_with_its_last_token():
    (outcome,) = run_to_end(make_engine(), [constrained(longest=3, stop_token_ids=frozenset())]).values()
    assert len(outcome.token_ids) == 3 and outcome.endings == [FinishReason.STOP]


def test_an_answer_that_completes_with_its_last_token_stopped_and_one_that_does_not_was_too_long():
    ends = frozenset()
    engine = make_engine()
    done = run_to_end(engine, [constrained(longest=4, max_tokens=4, stop_token_ids=ends)])[1]
    cut = run_to_end(engine, [constrained(longest=5, max_tokens=4, stop_token_ids=ends)])[1]
    assert (done.endings, cut.endings) == ([FinishReason.STOP], [FinishReason.LENGTH])


def test_the_request_itself_never_moves_and_every_answer_has_its_own_place():
    request = constrained(n=3, temperature=1.0, seed=4, longest=30, shortest=30)
    engine = make_engine()
    engine.submit(request)
    for _ in range(4):
        engine.step()
    assert len(set(map(tuple, outputs(engine).values()))) == 3
    assert taken(engine) == outputs(engine)
    assert request.params.constraint.taken == []


def test_a_failed_step_does_not_move_it():
    runner = HashingRunner()
    engine = make_engine(runner)
    engine.submit(constrained(longest=30, shortest=30))
    engine.step()
    before = outputs(engine)
    runner.failures.append(StepFailed("injected", retryable=True))
    plan = engine.scheduler.plan(0.0)
    with pytest.raises(StepFailed):
        engine._execute(plan)
    assert taken(engine) == outputs(engine) == before
    engine.step()
    assert taken(engine) == outputs(engine) and len(taken(engine)[0]) == 2


def test_a_preempted_answer_keeps_its_place():
    engine = make_engine()
    request = constrained(longest=30, shortest=30, max_tokens=12)
    events = engine.submit(request)
    for turn in range(30):
        if engine.has_work:
            events += engine.step()
        if turn in (2, 5) and engine.has_work:
            engine.scheduler.preempt(engine.scheduler.sequences[0])
            assert taken(engine) == outputs(engine) and violations(engine.scheduler) == []
    (preempted,) = collect(events).values()
    (alone,) = run_to_end(make_engine(), [request]).values()
    assert preempted.token_ids == alone.token_ids and request.params.constraint.follows(alone.token_ids)


def test_it_is_the_same_alone_and_in_a_crowd():
    requests = [
        constrained(number, range(number, number + 3 + number % 5), start=number, temperature=number % 3 / 2, seed=number)
        for number in range(24)
    ]
    crowd = run_to_end(make_engine(num_blocks=16, max_num_seqs=5), requests)
    for request in requests:
        (alone,) = run_to_end(make_engine(), [request]).values()
        assert crowd[request.request_id].token_ids == alone.token_ids


# --- in the sampler ----------------------------------------------------------------------------------------------------


def sequence(constraint, **params):
    return Sequence(make_request(0, (1, 2), max_tokens=100, constraint=constraint, **params))


def test_a_greedy_request_with_a_constraint_does_not_take_the_likeliest_token_of_all():
    assert not sequence(SumConstraint(5)).request.params.takes_likeliest


def test_it_holds_together_with_everything_else_that_shapes_a_row():
    shaping = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "frequency_penalty": 0.2}
    made = sequence(SumConstraint(9, start=2, ends={END}), **shaping, bad_words=((5,),), min_tokens=2, stop_token_ids={END})
    row = np.random.default_rng(3).standard_normal(VOCAB_SIZE).astype(np.float32)
    kept = np.flatnonzero(process_logits(row, made) > -np.inf)
    assert 0 < len(kept) <= 9 and set(kept % 3) == {2} and not {5, END} & set(kept)


def test_top_k_counts_the_allowed_tokens():
    row = np.arange(9, dtype=np.float32)
    made = sequence(SumConstraint(5, start=1, vocab_size=9), temperature=1.0, top_k=2)
    assert np.flatnonzero(process_logits(row, made) > -np.inf).tolist() == [4, 7]


@pytest.mark.parametrize("size", [3, 8, 60])
def test_tokens_beyond_the_mask_may_not_be_drawn_and_a_mask_beyond_the_vocabulary_is_cut(size):
    row = np.arange(20, dtype=np.float32)
    kept = np.flatnonzero(process_logits(row, sequence(SumConstraint(5, vocab_size=size))) > -np.inf)
    assert kept.tolist() == [token for token in range(min(size, 20)) if token % 3 == 0]


def test_a_mask_that_cannot_be_computed_is_the_error_of_its_request_alone():
    failing = SumConstraint(5)
    failing.error = InvalidRequest("regex", "a+", "a simpler one")
    rows = np.random.default_rng(3).standard_normal((2, VOCAB_SIZE)).astype(np.float32)
    error, token = Sampler().sample(rows, [sequence(failing), sequence(SumConstraint(5))])
    assert error is failing.error and token.token_id % 3 == 0
