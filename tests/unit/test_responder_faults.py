"""The responder when Triton refuses something, and when many clients go away at once."""

from __future__ import annotations

from fastserve.core.events import Failed, TokenEvent
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineStopped
from fastserve.engine.stats import EngineStats
from fastserve.errors import ResponderFailed, ShuttingDown, StepFailed
from fastserve.triton import responder as responder_module
from tests.doubles import RecordingChannel, RecordingMetrics
from tests.unit.test_responder import Scene


class RefusingMetrics(RecordingMetrics):
    """Triton has lost the metrics."""

    def update(self, stats):
        raise RuntimeError("no metrics")

    def count_endings(self, ending, count):
        raise RuntimeError("no metrics")


def test_metrics_that_cannot_be_written_cost_nobody_an_answer(caplog):
    scene = Scene(RefusingMetrics())
    failing, stopped, neighbour = scene.open(1), scene.open(2, stop="x"), scene.open(3)
    scene.outbox.put(EngineStats(running=3))
    scene.outbox.put([Failed(1, StepFailed("broken")), TokenEvent(2, ord("x"), None, None), TokenEvent(3, 65, None, None)])
    scene.tokens(3, "b", FinishReason.LENGTH)
    assert scene.finish() == [2]
    assert [channel.endings for channel in (failing, stopped, neighbour)] == [1, 1, 1]
    assert neighbour.text() == "Ab"
    assert "could not be counted" in caplog.text


def test_a_token_that_comes_while_numbers_are_sent_goes_out_before_the_next_number():
    order = []

    class Metrics(RecordingMetrics):
        def update(self, stats):
            order.append("a number")
            scene.tokens(1, "a")
            yield
            order.append("another")
            scene.outbox.put(EngineStopped())
            yield

    class Channel(RecordingChannel):
        def send(self, tensors, *, final):
            order.append("a token")

    scene = Scene(Metrics())
    scene.open(1, channel=Channel())
    scene.outbox.put(EngineStats(running=1))
    scene.responder.start()
    scene.join()
    assert order == ["a number", "a token", "another"]


def test_tokens_that_wait_for_a_slow_responder_go_out_together_and_errors_after_them():
    scene = Scene()
    whole, failing, stopped = scene.open(1), scene.open(2), scene.open(3, stop="c")
    for byte in b"abcd":
        scene.outbox.put([TokenEvent(request_id, byte, -0.5, None) for request_id in (1, 2, 3)])
    scene.outbox.put([Failed(2, StepFailed("broken")), TokenEvent(1, ord("!"), -0.5, FinishReason.LENGTH)])
    assert scene.finish() == [3]
    ((tensors, final),) = whole.responses
    assert (tensors["text_output"][0], tensors["output_ids"].tolist(), final) == (b"abcd!", [*b"abcd!"], True)
    assert (tensors["num_output_tokens"][0], tensors["cumulative_logprob"][0]) == (5, -2.5)
    assert [final for _, final in failing.responses] == [False] and failing.text() == "abcd"
    assert [str(error) for error in failing.errors] == ["broken"]
    assert (stopped.text(), stopped.endings) == ("ab", 1)
    assert stopped.responses[0][0]["output_ids"].tolist() == [*b"abc"]


def test_requests_that_are_being_answered_are_asked_in_every_sweep_whoever_waits(monkeypatch):
    scene = Scene()
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_SIZE", 1)
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_OLDEST", 2)
    served = [scene.open(request_id) for request_id in (1, 2, 3)]
    waiting = [scene.open(request_id) for request_id in range(10, 20)]
    for request_id in (1, 2, 3):
        scene.outbox.put([TokenEvent(request_id, 65, None, None)])
    scene.keep_up()
    scene.responder._abort_cancelled()
    for channel in served + waiting:
        channel.cancelled = True
    scene.responder._abort_cancelled()
    assert [channel.endings for channel in served] == [1, 1, 1]
    assert [channel.endings for channel in waiting[:2]] == [1, 1]
    assert sum(channel.endings for channel in waiting) == 3


def test_a_request_is_asked_about_when_it_has_waited_from_one_sweep_to_the_next():
    scene = Scene()
    first = scene.open(1)
    scene.keep_up()
    scene.responder._abort_cancelled()
    second = scene.open(2)
    scene.keep_up()
    first.cancelled = second.cancelled = True
    scene.responder._abort_cancelled()
    assert (first.endings, second.endings) == (1, 0)
    scene.responder._abort_cancelled()
    assert (first.endings, second.endings) == (1, 1)


def test_a_request_with_an_older_id_that_comes_late_keeps_no_other_from_being_asked_about():
    scene = Scene()
    leaving = scene.open(2)
    scene.open(1)  # a long text, read beside the short ones
    scene.keep_up()
    scene.responder._abort_cancelled()
    leaving.cancelled = True
    scene.responder._abort_cancelled()
    assert leaving.endings == 1


def test_requests_that_are_open_when_the_engine_has_stopped_are_still_answered():
    scene = Scene()
    left = scene.open(1)
    scene.tokens(1, "ab")
    scene.finish()
    assert left.text() == "ab"
    assert [type(error) for error in left.errors] == [ShuttingDown]


def test_a_bug_in_the_responder_ends_the_open_requests_and_later_ones_are_served(monkeypatch):
    scene = Scene()
    first = scene.open(1)
    scene.keep_up()
    later = scene.open(2)
    scene.tokens(2, "ok", FinishReason.LENGTH)
    messages, sound = [*scene.messages(), EngineStopped()], scene.responder._handle

    def handle(batch):
        monkeypatch.setattr(scene.responder, "_handle", sound)
        for message in messages:
            scene.outbox.put(message)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(scene.responder, "_handle", handle)
    scene.outbox.put(EngineStats())
    scene.responder.start()
    scene.join()
    assert [type(error) for error in first.errors] == [ResponderFailed]
    assert (later.text(), later.endings) == ("ok", 1)
