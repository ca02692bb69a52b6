"""The responder: each client gets its answer and exactly one ending, whatever its neighbours do."""

from __future__ import annotations

import queue

import pytest

from fastserve.core.events import Aborted, Failed, TokenEvent
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineStopped
from fastserve.engine.stats import EngineStats
from fastserve.errors import DeadlineExceeded, ErrorCode, InvalidRequest, QueueFull, RequestCancelled
from fastserve.tasks.text_generation import GenerationInput, TextGeneration
from fastserve.triton import responder as responder_module
from fastserve.triton.generation_stream import GenerationResponse
from fastserve.triton.protocol import ReturnFlags
from fastserve.triton.responder import Rejected, Responder
from tests.doubles import ByteTokenizer, RecordingChannel, RecordingMetrics, make_manifest

ALL = ReturnFlags(True, True, True, True, True)
TIMEOUT_S = 20


class Scene:
    """A responder with recording ends. Messages are played through its queue by its own thread."""

    def __init__(self, metrics=None, pace=None):
        self.outbox = queue.SimpleQueue()
        self.aborted = queue.SimpleQueue()
        self.metrics = metrics or RecordingMetrics()
        self.responder = Responder(self.outbox, self.aborted.put, self.metrics, pace)
        self.task = TextGeneration(make_manifest(), ByteTokenizer(), None, max_model_len=128, random_seed=lambda: 0)

    def open(self, request_id, *, stream=True, channel=None, flags=ALL, exclude=None, **parameters):
        channel = channel or RecordingChannel()
        item = GenerationInput("ask", None, stream, exclude, parameters)
        prepared = self.task.prepare(item, request_id, 0.0)
        self.outbox.put(GenerationResponse(channel, prepared, flags, self.task.tokenizer, withdraw=self.withdraw))
        return channel

    def withdraw(self, request_id, index):
        self.aborted.put((request_id, index))

    def tokens(self, request_id, text, reason=None):
        """One message for each byte; the last has ``reason``."""
        content = text.encode()
        for index, byte in enumerate(content, 1):
            self.outbox.put([TokenEvent(request_id, byte, -0.5, reason if index == len(content) else None)])

    def messages(self):
        """Take everything out of the queue."""
        while not self.outbox.empty():
            yield self.outbox.get()

    def keep_up(self):
        """Handle every message on its own, as a responder does that is faster than the engine."""
        for message in self.messages():
            self.responder._handle([message])

    def finish(self):
        """Let everything be handled; returns what was withdrawn from the engine."""
        self.outbox.put(EngineStopped())
        self.responder.start()
        self.join()
        return self.withdrawn()

    def join(self):
        self.responder._thread.join(TIMEOUT_S)
        assert not self.responder._thread.is_alive()

    def withdrawn(self):
        found = []
        while not self.aborted.empty():
            found.append(self.aborted.get())
        return found


@pytest.fixture
def scene():
    return Scene()


def test_a_stream_gets_each_delta_and_the_last_one_is_final(scene):
    channel = scene.open(1)
    scene.tokens(1, "hey", FinishReason.LENGTH)
    scene.keep_up()
    assert [(tensors["text_output"][0], final) for tensors, final in channel.responses] == [
        (b"h", False),
        (b"e", False),
        (b"y", True),
    ]
    assert [tensors["finish_reason"][0] for tensors, _ in channel.responses] == [b"None", b"None", b"length"]
    assert [tensors["output_ids"].tolist() for tensors, _ in channel.responses] == [[104], [101], [121]]
    assert [tensors["num_output_tokens"].tolist() for tensors, _ in channel.responses] == [[1], [1], [1]]
    assert [float(tensors["cumulative_logprob"][0]) for tensors, _ in channel.responses] == [-0.5, -1.0, -1.5]
    assert channel.endings == 1


def test_a_request_that_does_not_stream_gets_one_answer_with_everything(scene):
    channel = scene.open(1, stream=False)
    scene.tokens(1, "héy", FinishReason.LENGTH)
    scene.finish()
    ((tensors, final),) = channel.responses
    assert final
    assert tensors["text_output"][0].decode() == "askhéy"
    assert tensors["output_ids"].tolist() == list("héy".encode())
    assert (tensors["num_output_tokens"].tolist(), tensors["num_input_tokens"].tolist()) == ([4], [4])
    assert tensors["cumulative_logprob"].tolist() == [-2.0]


def test_the_prompt_is_left_out_when_excluded(scene):
    channel = scene.open(1, stream=False, exclude=True)
    scene.tokens(1, "hey", FinishReason.LENGTH)
    scene.finish()
    assert channel.text() == "hey"


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_ends_the_answer_once_and_withdraws_the_request(scene, stream):
    channel = scene.open(1, stream=stream, exclude=True, stop="##")
    scene.tokens(1, "ab##cdef", FinishReason.LENGTH)  # the engine went on a while
    scene.outbox.put([Aborted(1)])
    assert scene.finish() == [1]
    assert channel.text() == "ab"
    assert channel.responses[-1][0]["finish_reason"][0] == b"stop"
    assert channel.endings == 1
    assert scene.metrics.endings == ["stop"]


def test_a_stop_string_in_the_last_token_withdraws_nothing(scene):
    channel = scene.open(1, stop="##")
    scene.tokens(1, "ab##", FinishReason.LENGTH)
    assert scene.finish() == []
    assert (channel.text(), channel.endings) == ("ab", 1)


def test_a_failure_is_told_once_and_later_events_are_ignored(scene):
    channel = scene.open(1)
    error = DeadlineExceeded("too late")
    scene.tokens(1, "a")
    scene.outbox.put([Failed(1, error), Failed(1, QueueFull("again")), TokenEvent(1, 98, None, FinishReason.STOP)])
    assert scene.finish() == []
    assert channel.errors == [error]
    assert (len(channel.responses), channel.endings) == (1, 1)
    assert scene.metrics.endings == ["unavailable"]


def test_a_rejected_request_is_answered_without_the_engine(scene):
    channel = RecordingChannel()
    error = InvalidRequest("top_p", 2, "less")
    scene.outbox.put(Rejected(channel, error))
    assert scene.finish() == []
    assert channel.errors == [error]
    assert scene.metrics.endings == ["invalid_arg"]


def test_events_of_unknown_requests_are_ignored(scene):
    scene.outbox.put([TokenEvent(9, 1, None, None), Failed(9, QueueFull("x")), Aborted(9)])
    assert scene.finish() == []
    assert scene.metrics.endings == []


def test_one_message_may_carry_events_of_many_requests(scene):
    channels = {request_id: scene.open(request_id) for request_id in (1, 2, 3)}
    for letter, reason in (("a", None), ("b", FinishReason.STOP)):
        scene.outbox.put([TokenEvent(request_id, ord(letter) + request_id, None, reason) for request_id in channels])
    scene.finish()
    assert [channel.text() for channel in channels.values()] == ["bc", "cd", "de"]
    assert [channel.endings for channel in channels.values()] == [1, 1, 1]


@pytest.mark.parametrize("stream", [True, False])
def test_a_broken_channel_ends_its_own_request_and_no_other(scene, stream):
    broken = RecordingChannel()
    broken.broken = True
    scene.open(1, stream=stream, channel=broken)
    healthy = scene.open(2, stream=stream, exclude=True)
    for index in range(3):
        reason = FinishReason.LENGTH if index == 2 else None
        scene.outbox.put([TokenEvent(1, 97, None, reason), TokenEvent(2, 98, None, reason)])
    assert scene.finish() == [1]
    assert (healthy.text(), healthy.endings) == ("bbb", 1)
    assert sorted(scene.metrics.endings) == ["internal", "length"]


def test_a_broken_channel_that_is_to_be_told_of_an_error_hurts_nobody(scene):
    broken = RecordingChannel()
    broken.broken = True
    scene.outbox.put(Rejected(broken, QueueFull("full")))
    healthy = scene.open(2)
    scene.tokens(2, "ok", FinishReason.LENGTH)
    scene.finish()
    assert healthy.text() == "ok"


def test_the_newest_statistics_reach_the_metrics(scene):
    for steps in (1, 2, 3):
        scene.outbox.put(EngineStats(steps=steps))
    scene.finish()
    assert scene.metrics.snapshots == [EngineStats(steps=3)]


def test_every_ending_is_counted_once_and_by_its_kind(scene):
    for request_id in range(4):
        scene.open(request_id)
    scene.tokens(0, "a", FinishReason.STOP)
    scene.tokens(1, "a", FinishReason.LENGTH)
    scene.outbox.put([Failed(2, QueueFull("full"))])
    scene.outbox.put([Failed(3, RequestCancelled())])
    scene.finish()
    assert sorted(scene.metrics.endings) == ["cancelled", "length", "stop", "unavailable"]


# --- cancellation -----------------------------------------------------------------------------------------------------


class WatchedChannel(RecordingChannel):
    """Says when the client was asked about and when it got its error."""

    def __init__(self):
        super().__init__()
        self.asked = queue.SimpleQueue()
        self.failed = queue.SimpleQueue()

    def is_cancelled(self):
        self.asked.put(True)
        return super().is_cancelled()

    def fail(self, error):
        super().fail(error)
        self.failed.put(error)


class UnaskableChannel(WatchedChannel):
    def is_cancelled(self):
        raise RuntimeError("the shared memory is gone")


def end(scene):
    scene.outbox.put(EngineStopped())
    scene.join()


def test_a_client_that_went_away_is_told_so_once_and_its_request_withdrawn(scene, monkeypatch):
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_S", 0.0)
    leaving, staying = WatchedChannel(), RecordingChannel()
    scene.open(1, channel=leaving)
    scene.open(2, channel=staying)
    scene.responder.start()
    leaving.asked.get(timeout=TIMEOUT_S)  # asked while it is still there
    leaving.cancelled = True
    error = leaving.failed.get(timeout=TIMEOUT_S)
    assert (error.code, str(error)) == (ErrorCode.CANCELLED, "Request was cancelled")
    scene.tokens(1, "late", FinishReason.LENGTH)
    scene.outbox.put([Aborted(1)])
    scene.tokens(2, "ok", FinishReason.LENGTH)
    end(scene)
    assert scene.withdrawn() == [1]
    assert (leaving.endings, leaving.responses) == (1, [])
    assert (staying.text(), staying.endings) == ("ok", 1)
    assert sorted(scene.metrics.endings) == ["cancelled", "length"]


def test_every_waiting_client_is_asked_in_turn_even_when_a_sweep_takes_few(scene, monkeypatch):
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_S", 0.0)
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_SIZE", 2)
    channels = [WatchedChannel() for _ in range(7)]
    for request_id, channel in enumerate(channels):
        channel.cancelled = True
        scene.open(request_id, channel=channel)
    scene.responder.start()
    for channel in channels:
        channel.failed.get(timeout=TIMEOUT_S)
    end(scene)
    assert sorted(scene.withdrawn()) == list(range(7))
    assert [channel.endings for channel in channels] == [1] * 7


def test_a_channel_that_cannot_even_be_asked_is_given_up_and_hurts_nobody(scene, monkeypatch):
    monkeypatch.setattr(responder_module, "CANCEL_SWEEP_S", 0.0)
    gone, staying = UnaskableChannel(), RecordingChannel()
    scene.open(1, channel=gone)
    scene.open(2, channel=staying)
    scene.responder.start()
    gone.failed.get(timeout=TIMEOUT_S)
    scene.tokens(2, "ok", FinishReason.LENGTH)
    end(scene)
    assert scene.withdrawn() == [1]
    assert (gone.endings, staying.text()) == (1, "ok")
