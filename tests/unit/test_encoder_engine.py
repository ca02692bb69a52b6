"""The encoder's engine: what a failed run costs, what is counted, and life on the engine thread."""

from __future__ import annotations

import queue

import numpy as np
import pytest

from fastserve.core.events import Aborted, Encoded, Failed
from fastserve.engine.engine_thread import EngineStopped, EngineThread
from fastserve.engine.stats import EngineStats
from fastserve.engine.warm_up import WARM_UP_REQUEST_ID, warm_up
from fastserve.errors import DeadlineExceeded, QueueFull, ShuttingDown, StepFailed
from tests.doubles import FakeClock, HashingEncoder, collect, hash_sequence, make_encoder_engine, make_encoding, run_to_end

TIMEOUT_S = 20


class FixedEncoder(HashingEncoder):
    """Gives the same array for every sequence."""

    def __init__(self, output):
        super().__init__()
        self.output = np.array(output, np.float32)

    def run(self, sequences):
        super().run(sequences)
        return [self.output] * len(sequences)


def test_requests_get_an_output_for_each_sequence():
    requests = [make_encoding(0, 10, 20), make_encoding(1, 30)]
    outcomes = run_to_end(make_encoder_engine(), requests)
    for request in requests:
        (ending,) = outcomes[request.request_id].endings
        assert [tuple(output) for output in ending.outputs] == [hash_sequence(sequence) for sequence in request.sequences]


def test_a_failed_run_fails_its_requests_and_no_other():
    runner = HashingEncoder()
    runner.failures = [StepFailed("broken")]
    engine = make_encoder_engine(runner, max_batched_tokens=20)
    requests = [make_encoding(0, 10, 10), make_encoding(1, 10), make_encoding(2, 10)]
    outcomes = run_to_end(engine, requests)
    assert [str(outcomes[request_id].endings[0]) for request_id in (0, 1)] == ["broken", "broken"]
    assert isinstance(outcomes[2].endings[0], Encoded)
    assert len(runner.runs) == 2


@pytest.mark.parametrize("failure", [StepFailed("no memory", retryable=True), MemoryError()], ids=["retryable", "no memory"])
def test_a_retryable_failure_is_tried_once_more(failure):
    runner = HashingEncoder()
    runner.failures = [failure]
    outcomes = run_to_end(make_encoder_engine(runner), [make_encoding(0, 10)])
    assert isinstance(outcomes[0].endings[0], Encoded)
    assert runner.runs[0] == runner.runs[1]


def test_a_second_retryable_failure_is_final():
    runner = HashingEncoder()
    runner.failures = [MemoryError(), MemoryError()]
    outcomes = run_to_end(make_encoder_engine(runner), [make_encoding(0, 10)])
    assert str(outcomes[0].endings[0]) == "not enough memory for this iteration"


def test_a_bug_in_the_runner_is_an_error_of_the_run(caplog):
    runner = HashingEncoder()
    runner.failures = [ZeroDivisionError("a bug")]
    outcomes = run_to_end(make_encoder_engine(runner), [make_encoding(0, 10)])
    assert "the iteration failed (ZeroDivisionError: a bug)" in str(outcomes[0].endings[0])
    assert "an iteration failed" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_output_that_is_not_finite_is_an_error(value):
    outcomes = run_to_end(make_encoder_engine(FixedEncoder([[1.0], [value]])), [make_encoding(0, 10)])
    assert "not finite" in str(outcomes[0].endings[0])


@pytest.mark.parametrize("output", [[[1e30, -3e38]], np.zeros((0, 5))], ids=["huge", "no rows"])
def test_an_output_may_be_huge_or_empty(output):
    outcomes = run_to_end(make_encoder_engine(FixedEncoder(output)), [make_encoding(0, 10)])
    assert np.array_equal(outcomes[0].endings[0].outputs[0], np.array(output, np.float32))


def test_what_was_run_is_counted_and_what_waits_is_split_by_the_next_run():
    engine = make_encoder_engine(max_batched_tokens=20)
    for request_id in range(3):
        engine.submit(make_encoding(request_id, 10, 10))
    assert engine.stats() == EngineStats(running=2, waiting=1)
    engine.step()
    assert engine.stats() == EngineStats(running=2, waiting=1, prompt_tokens=20, steps=1)
    while engine.has_work:
        engine.step()
    assert engine.stats() == EngineStats(prompt_tokens=60, steps=3)


def test_the_time_of_runs_is_counted_and_the_warm_up_is_not():
    clock = FakeClock()

    class TimedEncoder(HashingEncoder):
        def run(self, sequences):
            clock.advance(2.0)
            return super().run(sequences)

    engine = make_encoder_engine(TimedEncoder(), clock=clock)
    warm_up(engine, make_encoding(WARM_UP_REQUEST_ID, 10))
    assert engine.stats() == EngineStats()
    engine.submit(make_encoding(0, 10))
    engine.step()
    assert engine.stats() == EngineStats(prompt_tokens=10, steps=1, step_seconds=2.0)


def test_a_warm_up_that_fails_says_why():
    with pytest.raises(StepFailed, match="not finite"):
        warm_up(make_encoder_engine(FixedEncoder([float("nan")])), make_encoding(WARM_UP_REQUEST_ID, 10))


def test_a_deadline_that_has_passed_ends_a_request_before_the_next_run():
    clock, runner = FakeClock(), HashingEncoder()
    engine = make_encoder_engine(runner, clock=clock)
    engine.submit(make_encoding(0, 10, deadline=1.0))
    clock.advance(1.0)
    (event,) = engine.step()
    assert isinstance(event, Failed) and isinstance(event.error, DeadlineExceeded)
    assert runner.runs == [] and not engine.has_work


def test_a_full_queue_refuses_at_once_and_an_abort_makes_room():
    engine = make_encoder_engine(max_queue_size=1)
    assert engine.submit(make_encoding(0, 10)) == []
    (refused,) = engine.submit(make_encoding(1, 10))
    assert isinstance(refused.error, QueueFull)
    assert engine.abort(0) == [Aborted(0)]
    assert engine.abort(0) == []
    assert engine.submit(make_encoding(2, 10)) == []


# --- on the engine thread ---------------------------------------------------------------------------------------------


def play(engine, *requests, drain_s=1e9):
    """Serve ``requests`` on an engine thread; what became of each."""
    outbox = queue.SimpleQueue()
    thread = EngineThread(engine, outbox, clock=FakeClock())
    for request in requests:
        thread.submit(request)
    thread.shutdown(drain_s)
    thread.start()
    assert thread.join(TIMEOUT_S)
    messages = []
    while not outbox.empty():
        messages.append(outbox.get())
    assert isinstance(messages[-1], EngineStopped)
    return collect([event for message in messages if isinstance(message, list) for event in message])


def test_the_engine_thread_serves_encoders_too():
    outcomes = play(make_encoder_engine(max_batched_tokens=20), *(make_encoding(index, 10, 10) for index in range(20)))
    assert sorted(outcomes) == list(range(20))
    assert all(isinstance(ending, Encoded) for outcome in outcomes.values() for ending in outcome.endings)
    assert all(len(outcome.endings) == 1 for outcome in outcomes.values())


def test_what_is_left_when_the_drain_time_is_over_is_told_so():
    outcomes = play(make_encoder_engine(max_num_seqs=1), *(make_encoding(index, 10) for index in range(3)), drain_s=0.0)
    assert [type(outcome.endings[0]) for outcome in outcomes.values()] == [Encoded, ShuttingDown, ShuttingDown]
