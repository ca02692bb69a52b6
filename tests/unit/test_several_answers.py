"""Several answers to one prompt: its blocks are shared, a shared block is never written, and the request ends once."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.core.events import Failed, TokenEvent, is_ending
from fastserve.core.invariants import violations
from fastserve.core.request import FinishReason
from fastserve.core.sequence import SequenceStatus
from fastserve.errors import DeadlineExceeded, QueueFull, StepFailed
from tests.doubles import FakeClock, collect, make_engine, make_request, run_to_end
from tests.hashing_runner import HashingRunner


def several(request_id=1, prompt=range(10), **params):
    return make_request(request_id, prompt, **({"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 9} | params))


def begun(engine, request=None):
    """Until every answer of a request has its first token."""
    events = engine.submit(request or several())
    while not any(sequence.output_token_ids for sequence in engine.scheduler.sequences):
        events += engine.step()
    return events


def tables(engine):
    return [sequence.block_table for sequence in engine.scheduler.sequences]


def test_the_prompt_is_computed_once_and_its_blocks_are_shared():
    engine = make_engine()
    events = begun(engine)
    assert sum(batch.num_tokens for batch in engine._runner.batches) == 10
    assert tables(engine)[0] == tables(engine)[1] == tables(engine)[2]
    assert engine.scheduler.pool.num_used == 3
    assert [event.index for event in events] == [0, 1, 2] and violations(engine.scheduler) == []


def test_each_answer_gets_its_own_last_block_when_it_writes_and_the_last_one_keeps_the_old():
    engine = make_engine()
    begun(engine)  # 10 tokens in blocks of 4: the third is half full
    shared = tables(engine)[0][2]
    engine.step()
    assert len({table[2] for table in tables(engine)}) == 3 and tables(engine)[2][2] == shared
    assert len({tuple(table[:2]) for table in tables(engine)}) == 1
    assert engine.scheduler.pool.num_used == 2 + 3


def test_a_full_last_block_is_never_copied():
    engine = make_engine()
    begun(engine, several(prompt=range(8)))
    engine.step()
    assert engine.scheduler.pool.num_used == 2 + 3


def test_answers_are_those_of_the_same_seed_whatever_their_number():
    (three,) = run_to_end(make_engine(), [several()]).values()
    (five,) = run_to_end(make_engine(), [several(n=5)]).values()
    (one,) = run_to_end(make_engine(), [several(n=1)]).values()
    assert one.token_ids == three.token_ids == five.token_ids
    assert [three.answer(index).token_ids for index in range(3)] == [five.answer(index).token_ids for index in range(3)]
    assert len({tuple(five.answer(index).token_ids) for index in range(5)}) == 5


def test_the_request_ends_with_its_last_answer_and_each_answer_says_how_many_go_on():
    engine = make_engine()
    (whole,) = run_to_end(make_engine(), [several(max_tokens=30)]).values()
    stop = whole.answer(1).token_ids[2]  # one answer ends early; others may
    events = engine.submit(several(max_tokens=30, stop_token_ids=frozenset({stop})))
    while engine.has_work:
        events += engine.step()
    ends = [event for event in events if event.finish_reason is not None]
    assert sorted(event.index for event in ends) == [0, 1, 2]
    assert [event.num_open for event in ends] == [2, 1, 0]
    assert [is_ending(event) for event in events] == [False] * (len(events) - 1) + [True]
    assert engine.scheduler.pool.num_used == 0


def test_answers_of_one_token_end_with_the_prompt():
    engine = make_engine()
    events = engine.submit(several(max_tokens=1)) + engine.step()
    assert [(event.index, event.finish_reason, event.num_open) for event in events] == [
        (0, FinishReason.LENGTH, 2),
        (1, FinishReason.LENGTH, 1),
        (2, FinishReason.LENGTH, 0),
    ]
    assert not engine.has_work and engine.scheduler.pool.num_used == 0


def test_a_request_counts_once_in_the_queue_and_in_the_statistics():
    engine = make_engine(max_queue_size=2)
    begun(engine)
    assert (engine.stats().running, engine.stats().waiting, len(engine.scheduler)) == (1, 0, 1)
    engine.submit(several(2))
    (refused,) = engine.submit(several(3))
    assert isinstance(refused, Failed) and isinstance(refused.error, QueueFull)
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_abort_ends_all_answers(after):
    engine = make_engine()
    engine.submit(several())
    for _ in range(after):
        engine.step()
    (event,) = engine.abort(1)
    assert is_ending(event) and not engine.has_work and engine.scheduler.pool.num_used == 0
    assert engine.abort(1) == []


def test_an_answer_may_be_withdrawn_alone_and_the_last_one_ends_the_request():
    engine = make_engine()
    begun(engine)
    assert engine.abort(1, 1) == [] and engine.abort(1, 1) == [] and engine.abort(1, 0) == []
    assert [sequence.index for sequence in engine.scheduler.sequences] == [2] and violations(engine.scheduler) == []
    (event,) = engine.abort(1, 2)
    assert is_ending(event) and engine.scheduler.pool.num_used == 0


def test_a_deadline_ends_all_answers_with_one_error():
    clock = FakeClock()
    engine = make_engine(clock=clock)
    begun(engine, make_request(1, range(10), deadline=5.0, n=3, temperature=1.0))
    clock.advance(6.0)
    (event,) = engine.step()
    assert isinstance(event, Failed) and isinstance(event.error, DeadlineExceeded) and not engine.has_work


def test_a_failed_run_leaves_the_sharing_as_it_was_and_costs_the_request_once():
    runner = HashingRunner()
    engine = make_engine(runner)
    begun(engine)
    before = [list(table) for table in tables(engine)]
    runner.failures = [StepFailed("injected", retryable=True)]
    plan = engine.scheduler.plan(0.0)
    with pytest.raises(StepFailed), engine.scheduler.reserve(plan):
        assert tables(engine) != before
        raise StepFailed("injected")
    assert tables(engine) == before and violations(engine.scheduler) == []
    (alone,) = run_to_end(make_engine(), [several()]).values()
    engine.step()  # fails once and is tried again
    assert [sequence.output_token_ids for sequence in engine.scheduler.sequences] == [
        alone.answer(index).token_ids[:2] for index in range(3)
    ]
    runner.failures = [StepFailed("injected")]
    (event,) = engine.step()
    assert isinstance(event, Failed) and not engine.has_work and engine.scheduler.pool.num_used == 0


def test_an_answer_that_cannot_be_sampled_ends_its_request_once_and_no_other():
    class BrokenRows(HashingRunner):
        def run(self, batch, kv_cache):
            logits = super().run(batch, kv_cache)
            if len(self.batches) == 3:
                logits[2] = np.nan  # after the first answer's row and the other request's
            return logits

    outcomes = run_to_end(make_engine(BrokenRows()), [several(max_tokens=20), several(2, range(3), n=2)])
    assert isinstance(outcomes[1].endings[-1], StepFailed) and outcomes[1].num_endings == 1
    assert outcomes[2].endings == [FinishReason.LENGTH] and outcomes[2].num_endings == 1


def test_a_preempted_answer_computes_its_tokens_again_in_blocks_of_its_own():
    engine = make_engine(num_blocks=7, max_model_len=24)
    expected = run_to_end(make_engine(), [several(max_tokens=14)])[1]
    events = begun(engine, several(max_tokens=14))
    alone_again = False
    while engine.has_work:
        preempted = {s for s in engine.scheduler.sequences if s.status is SequenceStatus.WAITING}
        events += engine.step()
        assert violations(engine.scheduler) == []
        held = [block for sequence in engine.scheduler.sequences if sequence in preempted for block in sequence.block_table]
        alone_again |= any(engine.scheduler.pool.ref_count(block) == 1 for block in held)
    assert engine.stats().preemptions > 0 and alone_again
    found = collect(events)[1]
    assert [found.answer(i).token_ids for i in range(3)] == [expected.answer(i).token_ids for i in range(3)]


def test_a_copy_is_planned_for_when_the_pool_is_full():
    engine = make_engine(num_blocks=3, max_model_len=12)
    begun(engine, several(max_tokens=2, n=2))  # three blocks, all shared: the first writer can only get a copy by taking
    plan = engine.scheduler.plan(0.0)
    assert [sequence.index for sequence in plan.preempted] == [1] and [chunk.sequence.index for chunk in plan.chunks] == [0]
    events = []
    while engine.has_work:
        events += engine.step()
    assert sorted(event.index for event in events if isinstance(event, TokenEvent)) == [0, 1]


def test_a_tenants_request_counts_once_until_its_last_answer_has_ended():
    engine = make_engine(max_queue_size_per_tenant=1)
    assert engine.submit(make_request(1, [1], tenant="ada", n=2, max_tokens=9)) == []
    engine.step()
    for index in (0, 1):
        (failed,) = engine.submit(make_request(2, [1], tenant="ada"))
        assert "queue of tenant 'ada' is full: 1 requests" in str(failed.error)
        engine.abort(1, index)
    assert engine.submit(make_request(2, [1], tenant="ada")) == []
