"""Reading requests: short ones at once, long ones on a thread of their own, and a bad one costs no other."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from fastserve.errors import InvalidRequest, QueueFull, RequestUnreadable
from fastserve.triton.long_texts import LongTexts
from fastserve.triton.request_reader import LONG_BYTES, Received, RequestReader
from fastserve.triton.responder import Rejected
from tests.doubles import RecordingChannel

TIMEOUT_S = 20
SHORT, LONG = b"a" * LONG_BYTES, b"a" * (LONG_BYTES + 1)


def received(*texts, numbers=()):
    tensors = {"text_input": np.array([[text] for text in texts], np.object_), "input_ids": np.array(numbers, np.int64)}
    return Received(RecordingChannel(), tensors, {}, (), 0.0)


class Scene:
    """A reader whose messages are kept in order. Reading a long text waits for ``go``; a text of "bad" or "bug" fails."""

    def __init__(self, max_waiting=10):
        self.outbox, self.order, self.threads = queue.SimpleQueue(), [], {}
        self.started, self.go = queue.SimpleQueue(), threading.Event()
        self.long_texts = LongTexts()
        self.reader = RequestReader(
            self.read,
            self.outbox,
            lambda request: self.outbox.put(("submit", request)),
            self.long_texts,
            max_waiting=max_waiting,
        )

    def read(self, request, request_id):
        self.threads[request_id] = threading.current_thread()
        text = request.tensors["text_input"][0, 0]
        if text == LONG:
            self.started.put(request_id)
            assert self.go.wait(TIMEOUT_S)
        if text == b"bad":
            raise InvalidRequest("text_input", "bad", "good")
        if text == b"bug":
            raise ZeroDivisionError("a bug")
        return ("stream", request_id), request_id

    def messages(self):
        """Everything that was put out, after L has ended."""
        self.go.set()
        self.long_texts.stop()
        found = []
        while not self.outbox.empty():
            found.append(self.outbox.get())
        return found


@pytest.fixture
def scene():
    return Scene()


def test_a_short_request_is_read_at_once_and_the_responder_hears_of_it_before_the_engine(scene):
    scene.reader.take(received(SHORT))
    assert [scene.outbox.get_nowait() for _ in range(2)] == [("stream", 0), ("submit", 0)]
    assert scene.threads[0] is threading.current_thread()


@pytest.mark.parametrize(
    "long", [received(LONG), received(LONG, b"b"), received(LONG, numbers=range(600))], ids=["text", "rows", "numbers"]
)
def test_a_long_request_is_read_elsewhere_and_keeps_no_short_one_waiting(scene, long):
    scene.reader.take(long)
    scene.started.get(timeout=TIMEOUT_S)
    scene.reader.take(received(SHORT))
    assert [scene.outbox.get_nowait() for _ in range(2)] == [("stream", 1), ("submit", 1)]
    assert scene.outbox.empty()
    assert scene.messages() == [("stream", 0), ("submit", 0)]
    assert scene.threads[0] is not threading.current_thread()


def test_many_short_texts_or_numbers_are_a_long_request_too():
    assert received(*[b"a" * 100] * 41).is_long and not received(*[b"a" * 100] * 40).is_long
    assert received(b"ab", numbers=range(512)).is_long and not received(numbers=range(512)).is_long


def test_a_text_that_is_read_once_for_each_of_many_labels_is_long():
    text = {"text_input": np.array([[b"a" * 500]], np.object_)}
    labels = {"candidate_labels": np.array([[b"x"] * 10], np.object_)}
    as_parameter = {"candidate_labels": ",".join("x" * 10)}
    assert Received(RecordingChannel(), text | labels, {}, (), 0.0).is_long
    assert Received(RecordingChannel(), text, as_parameter, (), 0.0).is_long
    assert not Received(RecordingChannel(), text, {"candidate_labels": "x,y"}, (), 0.0).is_long


@pytest.mark.parametrize("text", [b'{"json": true}', b'{"regex":"a"}', b'{"choice": ["a"]}', rb'{"\u006ason": {}}'])
def test_a_request_that_brings_a_grammar_is_read_where_there_is_time_to_compile_it(text):
    tensors = {"sampling_parameters": np.array([text], np.object_)}
    assert Received(RecordingChannel(), tensors, {}, (), 0.0).is_long
    assert not Received(
        RecordingChannel(), tensors | {"sampling_parameters": np.array([b'{"n": 2}'], np.object_)}, {}, (), 0.0
    ).is_long


def test_a_grammar_may_come_as_a_request_parameter_too():
    short = {"text_input": np.array([b"a"], np.object_)}
    assert Received(RecordingChannel(), short, {"regex": "a+"}, (), 0.0).is_long
    assert not Received(RecordingChannel(), short, {"max_tokens": 5}, (), 0.0).is_long


def test_long_requests_are_read_one_after_the_other_and_the_last_ones_before_the_end(scene):
    for _ in range(3):
        scene.reader.take(received(LONG))
    assert scene.messages() == [message for index in range(3) for message in (("stream", index), ("submit", index))]
    assert len(set(scene.threads.values())) == 1


@pytest.mark.parametrize(("text", "kind"), [(b"bad", InvalidRequest), (b"bug", RequestUnreadable)])
def test_a_request_that_cannot_be_read_is_rejected_and_costs_no_other(scene, text, kind, caplog):
    scene.reader.take(received(text))
    scene.reader.take(received(b"good"))
    rejected, *rest = scene.messages()
    assert isinstance(rejected, Rejected) and type(rejected.error) is kind
    assert rest == [("stream", 1), ("submit", 1)]
    assert ("a request could not be read" in caplog.text) == (kind is RequestUnreadable)


def test_no_more_long_requests_wait_than_the_queue_takes():
    scene = Scene(max_waiting=2)
    for _ in range(3):
        scene.reader.take(received(LONG))
    rejected = scene.outbox.get_nowait()
    assert isinstance(rejected, Rejected) and isinstance(rejected.error, QueueFull)
    assert "2 long requests, max_queue_size is 2" in str(rejected.error)
    scene.reader.take(received(SHORT))
    assert [scene.outbox.get_nowait()[0] for _ in range(2)] == ["stream", "submit"]
    assert len(scene.messages()) == 4


def test_there_is_room_again_when_a_long_request_was_read():
    scene = Scene(max_waiting=1)
    scene.go.set()
    for _ in range(3):
        scene.reader.take(received(LONG))
        scene.long_texts.wait()
    assert [kind for kind, _ in scene.messages()] == ["stream", "submit"] * 3
