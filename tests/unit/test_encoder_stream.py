"""The responder beside an encoder: one answer for each request, and a bug in making one costs that request alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fastserve.core.events import Aborted, Encoded, Failed
from fastserve.errors import ErrorCode, InvalidRequest, QueueFull, StepFailed
from fastserve.tasks.encoding_task import PreparedEncoding
from fastserve.triton.encoder_stream import EncodingResponse, LongEncodingResponse
from fastserve.triton.long_texts import LongTexts
from fastserve.triton.request_reader import Received
from tests.doubles import RecordingChannel, make_encoding
from tests.unit.test_responder import Scene, end

TIMEOUT_S = 20


class EncoderScene(Scene):
    """The answer to a request is its id, the sum of its outputs, and a tensor that nobody asks for."""

    def open(self, request_id, *, channel=None, outputs=("id", "sum"), problem=None, long_texts=None):
        channel = channel or RecordingChannel()

        def answer(rows):
            if problem is not None:
                raise problem
            return {"id": np.array([[request_id]]), "sum": np.array([[float(sum(row.sum() for row in rows))]]), "other": None}

        prepared = PreparedEncoding(make_encoding(request_id, 3), answer)
        received = Received(channel, {}, {}, outputs, 0.0)
        self.outbox.put(
            EncodingResponse(received, prepared)
            if long_texts is None
            else LongEncodingResponse(received, prepared, long_texts, self.outbox)
        )
        return channel


def encoded(request_id, *rows):
    return Encoded(request_id, tuple(np.array(row, np.float32) for row in rows))


@pytest.fixture
def scene():
    return EncoderScene()


def test_each_request_gets_one_final_answer_of_its_own(scene):
    channels = [scene.open(request_id) for request_id in range(3)]
    scene.outbox.put([encoded(1, [1.0, 2.0], [3.0]), encoded(0, [5.0])])
    scene.outbox.put([encoded(2, [7.0])])
    assert scene.finish() == []
    for request_id, (channel, total) in enumerate(zip(channels, (5.0, 6.0, 7.0), strict=True)):
        ((tensors, final),) = channel.responses
        assert final and channel.endings == 1
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"id": [[request_id]], "sum": [[total]]}
    assert scene.metrics.endings == ["success"] * 3


def test_only_requested_outputs_are_sent(scene):
    channel = scene.open(1, outputs=("sum",))
    scene.outbox.put([encoded(1, [4.0])])
    scene.finish()
    assert list(channel.responses[0][0]) == ["sum"]


def test_an_answer_that_the_task_refuses_to_give_is_that_error_for_this_request_alone(scene):
    error = InvalidRequest("text_input", "...", "something else")
    refused, neighbour = scene.open(1, problem=error), scene.open(2)
    scene.outbox.put([encoded(1, [1.0]), encoded(2, [2.0])])
    scene.finish()
    assert refused.errors == [error] and refused.responses == []
    assert neighbour.endings == 1 and neighbour.errors == []
    assert sorted(scene.metrics.endings) == ["invalid_arg", "success"]


def test_a_bug_in_making_an_answer_costs_that_request_alone(scene, caplog):
    broken, neighbour = scene.open(1, problem=ZeroDivisionError("a bug")), scene.open(2)
    scene.outbox.put([encoded(1, [1.0]), encoded(2, [2.0])])
    scene.finish()
    ((error),) = broken.errors
    assert error.code is ErrorCode.INTERNAL and "ZeroDivisionError: a bug" in str(error)
    assert neighbour.endings == 1 and neighbour.errors == []
    assert "request 1 could not be answered" in caplog.text


def test_a_channel_that_breaks_costs_that_request_alone(scene):
    broken = RecordingChannel()
    broken.broken = True
    scene.open(1, channel=broken)
    neighbour = scene.open(2)
    scene.outbox.put([encoded(1, [1.0]), encoded(2, [2.0])])
    scene.finish()
    assert neighbour.endings == 1
    assert sorted(scene.metrics.endings) == ["internal", "success"]


def test_failures_are_told_once_and_what_comes_later_is_ignored(scene):
    channel = scene.open(1)
    scene.outbox.put([Failed(1, StepFailed("broken"))])
    scene.outbox.put([encoded(1, [1.0]), Failed(1, QueueFull("again")), Aborted(1)])
    scene.finish()
    assert [str(error) for error in channel.errors] == ["broken"] and channel.responses == []


def test_a_client_that_went_away_is_told_so_and_its_request_withdrawn(scene):
    leaving, staying = scene.open(1), scene.open(2)
    scene.keep_up()
    scene.responder._abort_cancelled()
    leaving.cancelled = True
    scene.responder._abort_cancelled()
    assert [error.code for error in leaving.errors] == [ErrorCode.CANCELLED]
    scene.responder.start()
    scene.outbox.put([encoded(1, [1.0]), encoded(2, [2.0])])
    end(scene)
    assert scene.withdrawn() == [1]
    assert (leaving.endings, staying.endings) == (1, 1)


# --- long texts -------------------------------------------------------------------------------------------------------


class HeldTexts(LongTexts):
    """Work on long texts begins when the test says so."""

    def __init__(self):
        super().__init__()
        self.may_begin = threading.Event()
        self.do(lambda: self.may_begin.wait(TIMEOUT_S))


@pytest.fixture
def held():
    texts = HeldTexts()
    yield texts
    texts.may_begin.set()
    texts.stop()


def test_the_answer_to_a_long_text_is_made_elsewhere_and_keeps_nobody_waiting(scene, held):
    long, short = scene.open(1, long_texts=held), scene.open(2)
    scene.outbox.put([encoded(1, [1.0, 2.0]), encoded(2, [7.0])])
    scene.keep_up()
    assert (long.endings, short.endings) == (0, 1)
    held.may_begin.set()
    held.wait()
    scene.finish()
    ((tensors, final),) = long.responses
    assert final and {name: tensor.tolist() for name, tensor in tensors.items()} == {"id": [[1]], "sum": [[3.0]]}
    assert scene.metrics.endings == ["success"] * 2


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (InvalidRequest("text_input", "...", "something else"), "something else"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
    ],
)
def test_an_answer_to_a_long_text_that_cannot_be_made_is_an_error_of_that_request_alone(scene, held, problem, words):
    long, short = scene.open(1, long_texts=held, problem=problem), scene.open(2)
    scene.outbox.put([encoded(1, [1.0]), encoded(2, [2.0])])
    scene.keep_up()
    held.may_begin.set()
    held.wait()
    assert scene.finish() == []
    (error,) = long.errors
    assert words in str(error) and (long.endings, short.endings) == (1, 1)


def test_a_client_that_went_away_before_its_long_answer_was_made_is_told_once(scene, held):
    leaving = scene.open(1, long_texts=held)
    scene.outbox.put([encoded(1, [1.0])])
    scene.keep_up()
    scene.responder._abort_cancelled()
    leaving.cancelled = True
    scene.responder._abort_cancelled()
    held.may_begin.set()
    held.wait()
    scene.finish()
    assert [error.code for error in leaving.errors] == [ErrorCode.CANCELLED] and leaving.responses == []
