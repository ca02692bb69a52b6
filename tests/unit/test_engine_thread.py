"""The engine thread: every request ends exactly once, whatever happens to it, to its neighbours or to the engine."""

from __future__ import annotations

import queue
import threading

import pytest

from fastserve.core.invariants import violations
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineStopped, EngineThread
from fastserve.engine.stats import EngineStats
from fastserve.errors import DeadlineExceeded, EngineDead, QueueFull, RequestTooLong, ShuttingDown, StepFailed
from tests.doubles import FakeClock, collect, make_engine, make_request, run_to_end
from tests.hashing_runner import HashingRunner

TIMEOUT_S = 20


class SteppedRunner(HashingRunner):
    """Waits inside every run until the test lets it go on."""

    def __init__(self):
        super().__init__()
        self.entered, self.go = queue.SimpleQueue(), queue.SimpleQueue()

    def run(self, batch, kv_cache):
        self.entered.put(True)
        self.go.get(timeout=TIMEOUT_S)
        return super().run(batch, kv_cache)


class TimedRunner(HashingRunner):
    """Each run takes a second."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def run(self, batch, kv_cache):
        self.clock.advance(1.0)
        return super().run(batch, kv_cache)


class BuggyRunner(HashingRunner):
    """Raises what no runner should raise, in its first run."""

    def run(self, batch, kv_cache):
        if not self.batches:
            self.batches.append(batch)
            raise ZeroDivisionError("a bug")
        return super().run(batch, kv_cache)


def break_planning(engine, after=0):
    """The plan with index ``after`` meets a bug that has damaged the block pool as well."""
    plan, plans = engine.scheduler.plan, iter(range(10**6))

    def broken_plan(now):
        if next(plans) == after:
            engine.scheduler.pool._ref_counts = [0] * engine.scheduler.pool.num_blocks
            raise ZeroDivisionError("a bug")
        return plan(now)

    engine.scheduler.plan = broken_plan


class Scene:
    """An engine thread and everything it said. Messages sent before ``start`` are all there when it looks."""

    def __init__(self, runner=None, *, clock=None, stats_interval_s=0.25, **engine):
        self.clock = clock or FakeClock()
        self.outbox = queue.SimpleQueue()
        self.engine = make_engine(runner, clock=self.clock, **engine)
        self.thread = EngineThread(self.engine, self.outbox, clock=self.clock, stats_interval_s=stats_interval_s)
        self.messages = []

    def submit(self, *requests):
        for request in requests:
            self.thread.submit(request)

    def wait_for(self, kind):
        """The next message of a kind."""
        while True:
            self.messages.append(self.outbox.get(timeout=TIMEOUT_S))
            if isinstance(self.messages[-1], kind):
                return self.messages[-1]

    def end(self, drain_s=1e9):
        """Shut down and wait; what became of each request."""
        self.thread.shutdown(drain_s)
        return self.collect()

    def collect(self):
        self.wait_for(EngineStopped)
        assert self.thread.join(TIMEOUT_S)
        assert self.outbox.empty()
        if self.thread._dead is None:
            assert isinstance(self.messages[-2], EngineStats)
            assert violations(self.engine.scheduler) == []
            assert self.engine.scheduler.pool.num_used == 0
        return collect([event for message in self.messages if isinstance(message, list) for event in message])

    @property
    def stats(self):
        return [message for message in self.messages if isinstance(message, EngineStats)]


def endings(outcomes):
    """request id -> its only ending: the class of an error, or what it is."""
    assert all(len(outcome.endings) == 1 for outcome in outcomes.values()), outcomes
    only = {request_id: outcome.endings[0] for request_id, outcome in outcomes.items()}
    return {request_id: type(end) if isinstance(end, Exception) else end for request_id, end in only.items()}


def requests(count, **params):
    return [make_request(index, [index + 1, 2, 3], **({"max_tokens": 5} | params)) for index in range(count)]


def test_requests_get_the_tokens_they_would_get_without_the_thread():
    scene = Scene()
    scene.thread.start()
    scene.submit(*requests(6))
    assert scene.end() == run_to_end(make_engine(), requests(6))


def test_an_idle_engine_serves_whoever_comes_later():
    scene = Scene()
    scene.thread.start()
    for request in requests(3):
        scene.submit(request)
        scene.wait_for(list)
        while scene.messages[-1][-1].finish_reason is None:
            scene.wait_for(list)
    assert endings(scene.end()) == dict.fromkeys(range(3), FinishReason.LENGTH)


def test_an_aborted_request_ends_as_aborted_and_frees_its_blocks():
    runner = SteppedRunner()
    scene = Scene(runner)
    scene.submit(*requests(2))
    scene.thread.start()
    runner.entered.get(timeout=TIMEOUT_S)
    scene.thread.abort(0)
    for _ in range(10):
        runner.go.put(True)
    outcomes = scene.end()
    assert endings(outcomes) == {0: "aborted", 1: FinishReason.LENGTH}
    assert len(outcomes[0].token_ids) == 1  # of the run that was under way
    assert outcomes[1] == run_to_end(make_engine(), requests(2))[1]


def test_one_of_several_answers_may_be_withdrawn_and_the_request_ends_with_the_others():
    runner = SteppedRunner()
    scene = Scene(runner)
    scene.submit(make_request(0, [1, 2, 3], n=3, temperature=1.0, max_tokens=5))
    scene.thread.start()
    runner.entered.get(timeout=TIMEOUT_S)  # in the run that gives every answer its first token
    scene.thread.abort(0, 1)
    for _ in range(10):
        runner.go.put(True)
    outcome = scene.end()[0]
    assert [len(outcome.answer(index).token_ids) for index in range(3)] == [5, 1, 5]
    assert outcome.endings == [FinishReason.LENGTH] and outcome.num_endings == 1


def test_aborting_what_has_ended_or_never_was_does_nothing():
    scene = Scene()
    scene.submit(*requests(1))
    scene.thread.abort(-5)
    scene.thread.start()
    while not isinstance(scene.wait_for(list)[-1].finish_reason, FinishReason):
        pass
    scene.thread.abort(0)
    assert endings(scene.end()) == {0: FinishReason.LENGTH}


def test_a_client_that_is_gone_before_its_request_was_submitted_costs_nothing():
    runner = HashingRunner()
    scene = Scene(runner)
    scene.thread.abort(1)
    scene.submit(*requests(3))
    scene.thread.start()
    assert endings(scene.end()) == {0: FinishReason.LENGTH, 1: "aborted", 2: FinishReason.LENGTH}
    assert max(batch.num_rows for batch in runner.batches) == 2


def test_every_request_ends_exactly_once_while_others_submit_and_abort_at_the_same_time():
    scene = Scene(num_blocks=24, max_num_seqs=4, max_batched_tokens=8)
    scene.thread.start()

    def client(first):
        for request_id in range(first, first + 25):
            scene.submit(make_request(request_id, range(1 + request_id % 7), max_tokens=1 + request_id % 6))
            if request_id % 3 == 0:
                scene.thread.abort(request_id)
            if request_id % 4 == 0:
                scene.thread.abort(request_id - 2)

    clients = [threading.Thread(target=client, args=(first,)) for first in range(1, 100, 25)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(TIMEOUT_S)
    outcomes = endings(scene.end())
    assert set(outcomes) == set(range(1, 101))
    assert set(outcomes.values()) <= {"aborted", FinishReason.LENGTH}


def test_what_cannot_be_accepted_is_refused_at_once():
    scene = Scene(max_queue_size=2, max_model_len=20)
    scene.submit(make_request(9, range(20)), *requests(3))
    scene.thread.start()
    expected = {9: RequestTooLong, 0: FinishReason.LENGTH, 1: FinishReason.LENGTH, 2: QueueFull}
    assert endings(scene.end()) == expected


# --- shutting down ----------------------------------------------------------------------------------------------------


def test_draining_finishes_what_is_there():
    scene = Scene(max_num_seqs=2)
    scene.submit(*requests(5))
    scene.thread.shutdown(1e9)
    scene.thread.start()
    assert endings(scene.collect()) == dict.fromkeys(range(5), FinishReason.LENGTH)


def test_an_idle_engine_stops_at_once():
    scene = Scene()
    scene.thread.start()
    assert scene.end() == {}


def test_what_is_not_finished_when_the_drain_time_is_over_fails_as_shutting_down():
    clock = FakeClock()
    scene = Scene(TimedRunner(clock), clock=clock)
    scene.submit(*requests(1, max_tokens=3), make_request(1, [1], max_tokens=50))
    scene.thread.shutdown(5.0)
    scene.thread.start()
    outcomes = scene.collect()
    assert endings(outcomes) == {0: FinishReason.LENGTH, 1: ShuttingDown}
    assert len(outcomes[1].token_ids) == 5
    assert "unloaded before the request finished" in str(outcomes[1].endings[0])


def test_without_drain_time_everything_fails_at_once():
    runner = HashingRunner()
    scene = Scene(runner)
    scene.submit(*requests(3))
    scene.thread.shutdown(0.0)
    scene.thread.start()
    assert set(endings(scene.collect()).values()) == {ShuttingDown}
    assert len(runner.batches) <= 1


def test_submissions_after_the_shutdown_are_refused_while_the_rest_finishes():
    scene = Scene()
    first, second = requests(2)
    scene.submit(first)
    scene.thread.shutdown(1e9)
    scene.submit(second)
    scene.thread.start()
    outcomes = scene.collect()
    assert endings(outcomes) == {0: FinishReason.LENGTH, 1: ShuttingDown}
    assert "being unloaded" in str(outcomes[1].endings[0])


def test_a_submission_that_arrives_during_the_very_last_iteration_is_refused_too():
    runner = SteppedRunner()
    scene = Scene(runner)
    first, second = requests(2, max_tokens=1)
    scene.submit(first)
    scene.thread.shutdown(1e9)
    scene.thread.start()
    runner.entered.get(timeout=TIMEOUT_S)
    scene.submit(second)
    runner.go.put(True)
    assert endings(scene.collect()) == {0: FinishReason.LENGTH, 1: ShuttingDown}


def test_waiting_for_the_end_says_whether_it_came():
    runner = SteppedRunner()
    scene = Scene(runner)
    scene.submit(*requests(1, max_tokens=1))
    scene.thread.start()
    runner.entered.get(timeout=TIMEOUT_S)
    assert not scene.thread.join(0.0)
    runner.go.put(True)
    scene.end()
    assert scene.thread.join(0.0)


# --- failing ----------------------------------------------------------------------------------------------------------


def test_a_bug_fails_every_request_and_every_later_one_with_its_cause(caplog):
    scene = Scene(max_num_seqs=2)
    break_planning(scene.engine, after=1)
    scene.submit(*requests(3))
    scene.thread.start()
    while scene.thread._dead is None:
        scene.wait_for(list)
    scene.submit(make_request(7, [1]))
    scene.thread.abort(0)
    outcomes = scene.end()
    assert endings(outcomes) == dict.fromkeys((0, 1, 2, 7), EngineDead)
    assert all("ZeroDivisionError: a bug" in str(outcome.endings[0]) for outcome in outcomes.values())
    assert [len(outcomes[request_id].token_ids) for request_id in (0, 1, 2)] == [1, 1, 0]
    assert "the engine failed" in caplog.text


def test_a_request_whose_deadline_passed_just_before_a_bug_still_gets_its_ending():
    clock = FakeClock()
    scene = Scene(clock=clock)
    break_planning(scene.engine)
    scene.submit(make_request(0, [1], deadline=1.0), make_request(1, [1]))
    clock.advance(2.0)
    scene.thread.start()
    assert endings(scene.end()) == {0: DeadlineExceeded, 1: EngineDead}


def test_a_bug_in_the_middle_of_a_commit_still_ends_every_request_once():
    scene = Scene()
    finish, finished = scene.engine.scheduler.finish, []

    def break_the_second(sequence):
        finished.append(sequence)
        if len(finished) == 2:
            raise ZeroDivisionError("a bug")
        finish(sequence)

    scene.engine.scheduler.finish = break_the_second
    scene.submit(*requests(4, max_tokens=1))
    scene.thread.start()
    outcomes = scene.end()
    assert endings(outcomes) == dict.fromkeys(range(4), EngineDead)
    assert [stats.running + stats.waiting for stats in scene.stats][-1] == 0


def test_an_unexpected_exception_in_a_run_fails_only_the_requests_that_were_in_it(caplog):
    scene = Scene(BuggyRunner(), max_num_seqs=2)
    scene.submit(*requests(3))
    scene.thread.start()
    outcomes = scene.end()
    assert endings(outcomes) == {0: StepFailed, 1: StepFailed, 2: FinishReason.LENGTH}
    assert "ZeroDivisionError: a bug" in str(outcomes[0].endings[0])
    assert "an iteration failed" in caplog.text


def test_a_run_out_of_memory_is_tried_once_more():
    runner = HashingRunner()
    runner.failures = [MemoryError()]
    scene = Scene(runner)
    scene.submit(*requests(2))
    scene.thread.start()
    outcomes = scene.end()
    assert outcomes == run_to_end(make_engine(), requests(2))


def test_a_failed_step_fails_only_the_requests_that_were_in_it():
    runner = HashingRunner()
    error = StepFailed("broken")
    runner.failures = [error]
    scene = Scene(runner, max_num_seqs=2)
    scene.submit(*requests(4))
    scene.thread.start()
    outcomes = scene.end()
    assert endings(outcomes) == {0: StepFailed, 1: StepFailed, 2: FinishReason.LENGTH, 3: FinishReason.LENGTH}
    assert outcomes[0].endings == [error]
    healthy = run_to_end(make_engine(), requests(4))
    assert (outcomes[2], outcomes[3]) == (healthy[2], healthy[3])


def test_a_retryable_failure_is_tried_again_once_and_nobody_notices():
    runner = HashingRunner()
    runner.failures = [StepFailed("no memory", retryable=True)]
    scene = Scene(runner)
    scene.submit(*requests(3))
    scene.thread.start()
    assert scene.end() == run_to_end(make_engine(), requests(3))
    first, second = runner.batches[:2]
    assert first.slot_mapping.tolist() == second.slot_mapping.tolist()


@pytest.mark.parametrize("second", [True, False], ids=["retryable", "final"])
def test_a_step_that_fails_again_fails_its_batch(second):
    runner = HashingRunner()
    runner.failures = [StepFailed("no memory", retryable=True), StepFailed("no memory", retryable=second)]
    scene = Scene(runner, max_num_seqs=2)
    scene.submit(*requests(3))
    scene.thread.start()
    assert endings(scene.end()) == {0: StepFailed, 1: StepFailed, 2: FinishReason.LENGTH}


def test_a_final_failure_is_not_tried_again():
    runner = HashingRunner()
    runner.failures = [StepFailed("broken")]
    scene = Scene(runner)
    scene.submit(*requests(1))
    scene.thread.start()
    scene.end()
    assert len(runner.batches) == 1


def test_a_deadline_that_passes_ends_running_and_waiting_requests():
    clock = FakeClock()
    scene = Scene(TimedRunner(clock), clock=clock, max_num_seqs=1)
    scene.submit(
        make_request(0, [1], max_tokens=50, deadline=3.0),
        make_request(1, [2], max_tokens=50, deadline=2.0),
        make_request(2, [3], max_tokens=2, deadline=30.0),
    )
    scene.thread.start()
    outcomes = scene.end()
    assert endings(outcomes) == {0: DeadlineExceeded, 1: DeadlineExceeded, 2: FinishReason.LENGTH}
    assert (len(outcomes[0].token_ids), len(outcomes[1].token_ids)) == (3, 0)
    assert "deadline_ms" in str(outcomes[0].endings[0])


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_published_when_idle_and_at_the_end():
    scene = Scene()
    scene.thread.start()
    assert scene.wait_for(EngineStats).steps == 0
    scene.submit(*requests(2, max_tokens=4))
    scene.end()
    last = scene.stats[-1]
    assert (last.running, last.waiting, last.blocks_used, last.blocks_free) == (0, 0, 0, 64)
    assert (last.prompt_tokens, last.generation_tokens) == (6, 8)
    assert last.steps >= 4


@pytest.mark.parametrize(("interval_s", "published"), [(3.0, 7), (1000.0, 1)])
def test_a_busy_engine_publishes_statistics_once_in_an_interval(interval_s, published):
    clock = FakeClock()
    scene = Scene(TimedRunner(clock), clock=clock, stats_interval_s=interval_s)
    scene.submit(*requests(1, max_tokens=20))
    scene.thread.start()
    scene.end()
    busy = [stats for stats in scene.stats if stats.running]
    assert abs(len(busy) - published) <= 1
    assert [stats.steps for stats in busy] == sorted({stats.steps for stats in busy})
    assert scene.stats[-1].step_seconds == 20.0
