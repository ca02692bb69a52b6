"""Tokens of many streams wait for the next ones, briefly, and only where answering would cost much."""

from __future__ import annotations

import queue

import pytest

from fastserve.core.events import Failed, TokenEvent
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineStopped
from fastserve.errors import DeadlineExceeded
from fastserve.triton import responder as responder_module
from fastserve.triton.responder import Rejected
from fastserve.triton.response_pace import FEW, SENDING_SHARE, ResponsePace
from tests.doubles import RecordingChannel
from tests.unit.test_responder import TIMEOUT_S, Scene

LENGTH = FinishReason.LENGTH


class WaitingPace(ResponsePace):
    """As of a server whose responses cost much."""

    def interval(self, num_streams):
        return self._longest_s


@pytest.fixture
def scene():
    """No token is sent because of the time that has passed."""
    return Scene(pace=WaitingPace(1e6))


def texts(channel):
    return [tensors["text_output"][0].decode() for tensors, _ in channel.responses]


def test_the_interval_grows_with_the_streams_and_what_a_response_costs_up_to_the_longest():
    pace = ResponsePace(0.05)
    assert pace.interval(1000) == 0.0  # nothing is known yet
    for _ in range(200):
        pace.sent(10, 0.001)
    assert pace.interval(FEW + 1) == pytest.approx(0.0001 / SENDING_SHARE, rel=0.01)
    assert pace.interval(FEW + 8) == pytest.approx(8 * pace.interval(FEW + 1))
    assert pace.interval(1000) == 0.05
    before = pace.interval(FEW + 1)
    for _ in range(200):
        pace.sent(1, 0.0002)
    assert pace.interval(FEW + 1) == pytest.approx(2 * before, rel=0.01)


def test_tokens_of_a_few_streams_never_wait_whatever_a_response_costs():
    pace = ResponsePace(0.05)
    for _ in range(100):
        pace.sent(1, 1.0)
    assert [pace.interval(count) for count in range(FEW + 1)] == [0.0] * (FEW + 1)
    assert pace.interval(FEW + 1) == 0.05


def test_one_response_that_cost_much_says_little():
    pace = ResponsePace(0.05)
    pace.sent(1, 0.01)
    assert pace.interval(FEW + 1) == pytest.approx(0.05 * 0.01 / SENDING_SHARE)


def test_without_a_longest_wait_no_token_ever_waits():
    pace = ResponsePace()
    pace.sent(1, 1.0)
    assert pace.interval(1000) == 0.0


def test_tokens_wait_for_the_next_ones_but_not_the_first_and_not_after_the_last(scene):
    channel = scene.open(1)
    scene.tokens(1, "hello", LENGTH)
    scene.keep_up()
    assert texts(channel) == ["h", "ello"]
    assert channel.endings == 1


def test_each_stream_is_answered_when_its_own_last_response_is_old_enough(scene, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(responder_module.time, "monotonic", lambda: now[0])
    scene.responder._pace = WaitingPace(0.05)
    first, second = scene.open(1), scene.open(2)
    scene.tokens(1, "a")
    scene.keep_up()
    for at, letter in ((0.02, "b"), (0.04, "c"), (0.06, "d"), (0.08, "e")):
        now[0] = at
        scene.outbox.put([TokenEvent(request_id, ord(letter), None, None) for request_id in (1, 2)])
        scene.keep_up()
    assert texts(first) == ["a", "bcd"]  # at 0 and 0.06; "e" waits
    assert texts(second) == ["b", "cde"]  # at 0.02 and 0.08


def test_a_client_that_says_how_many_tokens_it_wants_gets_so_many(scene):
    single, double = scene.open(1, stream_interval=1), scene.open(2, stream_interval=2)
    for request_id in (1, 2):
        scene.tokens(request_id, "abcde", LENGTH)
    scene.keep_up()
    assert (texts(single), texts(double)) == (["a", "b", "c", "d", "e"], ["a", "bc", "de"])


def test_a_stop_string_is_looked_for_in_every_token_at_once(scene):
    scene.open(1, stop="##")
    scene.tokens(1, "ab##c")
    messages = list(scene.messages())
    for message in messages[:5]:  # the stream and four tokens
        scene.responder._handle([message])
    assert scene.withdrawn() == [1]


class CountingPace(ResponsePace):
    """Remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def sent(self, num_responses, seconds):
        self.told.append((num_responses, seconds))


def test_only_what_is_sent_to_streams_counts_as_their_cost(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(responder_module.time, "thread_time", lambda: seconds[0])

    class CostlyChannel(RecordingChannel):
        def send(self, tensors, *, final):
            super().send(tensors, final=final)
            seconds[0] += 1.0

        def fail(self, error):
            super().fail(error)
            seconds[0] += 100.0

    scene = Scene(pace=CountingPace())
    for request_id in (1, 2):
        scene.open(request_id, channel=CostlyChannel())
    scene.outbox.put(Rejected(CostlyChannel(), DeadlineExceeded("too late")))
    scene.outbox.put([TokenEvent(request_id, 97, None, None) for request_id in (1, 2)])
    scene.responder._handle(list(scene.messages()))
    assert scene.responder._pace.told == [(2, 2.0)]


def test_a_whole_answer_is_complete(scene):
    channel = scene.open(1, stream=False, exclude=True)
    scene.tokens(1, "hello", LENGTH)
    scene.keep_up()
    assert texts(channel) == ["hello"] and channel.endings == 1


def test_what_waits_is_sent_before_an_error_and_before_the_end_of_the_model(scene):
    failing, unloaded = scene.open(1), scene.open(2)
    error = DeadlineExceeded("too late")
    for request_id in (1, 2):
        scene.tokens(request_id, "abc")
    scene.keep_up()
    scene.outbox.put([Failed(1, error)])
    scene.finish()
    assert (texts(failing), failing.errors) == (["a", "bc"], [error])
    assert texts(unloaded) == ["a", "bc"] and unloaded.endings == 1


def test_what_waits_of_a_client_that_went_away_is_dropped(scene, monkeypatch):
    channel = scene.open(1)
    scene.tokens(1, "abc")
    scene.keep_up()
    channel.cancelled = True
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_S", 0.0)
    scene.responder._swept_id = 1
    assert scene.finish() == [1]
    assert texts(channel) == ["a"] and channel.endings == 1


class SpeakingChannel(RecordingChannel):
    """Says when something was sent."""

    def __init__(self):
        super().__init__()
        self.sent = queue.SimpleQueue()

    def send(self, tensors, *, final):
        super().send(tensors, final=final)
        self.sent.put(final)


def test_what_waits_is_sent_when_nothing_follows_in_time(monkeypatch):
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_S", 1e6)
    scene = Scene(pace=WaitingPace(0.2))
    channel = scene.open(1, channel=SpeakingChannel())
    scene.responder.start()
    scene.tokens(1, "a")
    channel.sent.get(timeout=TIMEOUT_S)
    scene.tokens(1, "b")
    channel.sent.get(timeout=TIMEOUT_S)  # without another message: the engine is busy with a long iteration
    assert texts(channel) == ["a", "b"]
    scene.outbox.put(EngineStopped())
    scene.join()
    assert channel.endings == 1
