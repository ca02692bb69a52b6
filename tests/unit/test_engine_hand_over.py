"""When what an iteration computed reaches the thread that answers: while the model runs again, or before anything else that may
take long."""

from __future__ import annotations

import queue
import threading

from fastserve.core.events import TokenEvent
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineThread
from fastserve.engine.stats import EngineStats
from tests.doubles import FakeClock, make_request
from tests.unit.test_engine_thread import TIMEOUT_S, Scene, SteppedRunner, requests


def test_what_an_iteration_computed_is_handed_over_when_the_next_one_runs_the_model_or_when_none_follows():
    runner = SteppedRunner()
    scene = Scene(runner, stats_interval_s=1e9)
    scene.submit(*requests(1, max_tokens=2))
    scene.thread.start()
    runner.entered.get(timeout=TIMEOUT_S)
    plan, seen = scene.engine.scheduler.plan, []

    def watched_plan(now):
        seen.extend(_events(scene.outbox))
        return plan(now)

    scene.engine.scheduler.plan = watched_plan
    runner.go.put(True)
    runner.entered.get(timeout=TIMEOUT_S)
    assert seen == []
    assert len(_events(scene.outbox)) == 1  # its run has begun, not ended
    runner.go.put(True)
    assert scene.outbox.get(timeout=TIMEOUT_S)[0].finish_reason is FinishReason.LENGTH  # nothing follows, and nobody asks
    scene.end()


class EndingEngine:
    """Ends its only request in its first step, and then has something left to do, which goes as the test says."""

    def __init__(self, then):
        self.before_wait = lambda: None
        self.has_work = False
        self._then, self._steps = then, 0

    def submit(self, request):
        self.has_work = True
        return []

    def step(self):
        self._steps += 1
        if self._steps == 1:
            return [TokenEvent(0, 1, None, FinishReason.LENGTH)]
        return self._then(self)

    def fail_all(self, error):
        return []

    def stats(self):
        return EngineStats()


def ending_of_first_step(then, *, after=lambda: None):
    """The ending, as it reaches the outbox while the engine goes on with ``then``; ``after``: called when it has."""
    outbox = queue.SimpleQueue()
    thread = EngineThread(EndingEngine(then), outbox, clock=FakeClock(), stats_interval_s=1e9)
    thread.submit(make_request(0, [1]))
    thread.start()
    while not isinstance(message := outbox.get(timeout=TIMEOUT_S), list):
        pass
    after()
    thread.shutdown(0.0)
    assert thread.join(TIMEOUT_S)
    (event,) = message
    return event.finish_reason


def test_an_ending_reaches_its_client_though_the_engine_meets_a_bug_right_after_it():
    def bug(engine):
        raise ZeroDivisionError("a bug")

    assert ending_of_first_step(bug) is FinishReason.LENGTH


def test_an_ending_reaches_its_client_before_the_engine_waits_for_something_else():
    ended = threading.Event()

    def wait(engine):
        engine.before_wait()
        assert ended.wait(TIMEOUT_S)
        engine.has_work = False
        return []

    assert ending_of_first_step(wait, after=ended.set) is FinishReason.LENGTH


def _events(outbox):
    """Take the events out."""
    found = []
    while not outbox.empty():
        message = outbox.get()
        found += message if isinstance(message, list) else []
    return found
