"""Triton's side of a served function: every request ends once, whatever the client, the function or the clock does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastserve.errors import (
    ConfigError,
    DeadlineExceeded,
    ErrorCode,
    InvalidRequest,
    RequestCancelled,
)
from fastserve.functions.local_socket import FunctionUnavailable
from fastserve.functions.wire import Decoder, Drop, Failure, Result
from fastserve.triton import function_requests
from fastserve.triton.function_io import FunctionSettings, encode_results, parse_function_input, render_function_config
from fastserve.triton.function_requests import FunctionFailed, FunctionRequests, OpenRequest
from tests.doubles import RecordingChannel
from tests.function_doubles import column, only_error, results_of

# --- tensors and settings ---------------------------------------------------------------------------------------------


def settings(**changes):
    return FunctionSettings.parse({"socket_directory": "/somewhere", "takes_parameters": "true"} | changes)


def test_texts_parameters_and_deadline_are_read():
    item = parse_function_input({"text_input": column("Grüße", "b")}, {"k": 3, "deadline_ms": "250", "timeout": 9}, settings())
    assert (item.texts, item.parameters, item.deadline_ms) == (("Grüße", "b"), {"k": 3}, 250)


def test_the_models_own_deadline_counts_when_the_request_brings_none():
    assert parse_function_input({"text_input": column("a")}, {}, settings(default_deadline_ms="40")).deadline_ms == 40


@pytest.mark.parametrize(
    ("tensor", "parameters", "words"),
    [
        (column(b"\xff"), {}, "text_input: .* valid UTF-8"),
        (np.array([[b"a", b"b"]], np.object_), {}, "text_input: .* one text in each row"),
        (np.array(b"a", np.object_), {}, "text_input: .* one text in each row"),
        (column("a"), {"deadline_ms": 0}, "deadline_ms: got 0, allowed: a whole number of milliseconds"),
        (column("a"), {"deadline_ms": "soon"}, "deadline_ms: got 'soon'"),
        (column("a"), {"k": 3}, "k: got 3, allowed: deadline_ms; this model's function takes no parameters"),
    ],
)
def test_what_a_function_cannot_take_is_refused_by_name(tensor, parameters, words):
    with pytest.raises(InvalidRequest, match=words):
        parse_function_input({"text_input": tensor}, parameters, settings(takes_parameters="false"))


def test_results_become_a_column_of_json():
    tensor = encode_results(['{"ü": 1}', "[]"])["result"]
    assert tensor.tolist() == [['{"ü": 1}'.encode()], [b"[]"]]


def test_settings_survive_the_way_through_config_pbtxt_whatever_the_folder_is_called():
    given = settings(socket_directory='/tmp/a "quoted" \\ folder', max_queue_size="7", default_deadline_ms="9")
    assert FunctionSettings.parse(given.as_parameters()) == given
    text = render_function_config(16, 500, given)
    assert "max_batch_size: 16" in text and "max_queue_delay_microseconds: 500" in text
    assert json.dumps('/tmp/a "quoted" \\ folder') in text


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"socket_directory": "/x"}, "takes_parameters: missing"),
        ({"takes_parameters": "true"}, "socket_directory: missing"),
        ({"max_queue_sise": "1"}, "max_queue_sise: unknown key .* allowed: max_queue_size, default_deadline_ms"),
        ({"socket_directory": "/x", "takes_parameters": "true", "max_queue_size": "0"}, "max_queue_size: got 0"),
    ],
)
def test_settings_that_are_wrong_are_named(parameters, words):
    with pytest.raises(ConfigError, match=words):
        FunctionSettings.parse(parameters)


# --- the open requests ------------------------------------------------------------------------------------------------


class Table:
    """The open requests and what they tell the other side."""

    def __init__(self):
        self.sent = []
        self.requests = FunctionRequests(lambda frame: self.sent.extend(Decoder().feed(frame)))

    def open(self, call_id, *, rows=1, deadline=None):
        channel = RecordingChannel()
        self.requests.add(OpenRequest(call_id, channel, rows, deadline))
        return channel


def test_an_answer_ends_its_own_request_once():
    table = Table()
    channels = [table.open(call_id, rows=2) for call_id in (1, 2)]
    table.requests.answer(Result(2, ("1", "2")))
    table.requests.answer(Result(2, ("3", "4")))
    table.requests.answer(Result(99, ()))
    assert [channel.endings for channel in channels] == [0, 1]
    assert results_of(channels[1]) == ["1", "2"]
    assert (len(table.requests), table.requests.ended) == (1, 1)


@pytest.mark.parametrize(("code", "kind"), [(ErrorCode.INTERNAL, FunctionFailed), (ErrorCode.UNAVAILABLE, FunctionUnavailable)])
def test_a_failure_reaches_the_client_with_its_code(code, kind):
    table = Table()
    channel = table.open(1)
    table.requests.answer(Failure(1, code, "why"))
    error = only_error(channel)
    assert (type(error), error.code, str(error)) == (kind, code, "why")


def test_a_wrong_number_of_results_is_an_error_not_a_wrong_tensor():
    table = Table()
    channel = table.open(1, rows=2)
    table.requests.answer(Result(1, ("1",)))
    assert "1 results came for 2 texts" in str(only_error(channel))


def test_a_deadline_ends_a_request_and_tells_the_other_side_and_a_late_answer_is_nothing():
    table = Table()
    late, soon, never = table.open(1, deadline=5.0), table.open(2, deadline=3.0), table.open(3)
    table.requests.sweep(2.9)
    assert table.sent == []
    table.requests.sweep(3.0)
    assert isinstance(only_error(soon), DeadlineExceeded)
    assert (table.sent, late.endings, never.endings) == ([Drop(2)], 0, 0)
    table.requests.answer(Result(2, ("1",)))
    assert soon.endings == 1


def test_cancelled_requests_end_in_turns_and_are_dropped(monkeypatch):
    monkeypatch.setattr(function_requests, "CANCEL_SWEEP_SIZE", 2)
    table = Table()
    channels = [table.open(call_id) for call_id in range(5)]
    table.requests.answer(Result(0, ("1",)))  # costs no turn
    channels[4].cancelled = channels[1].cancelled = True
    table.requests.sweep(0.0)
    assert table.sent == [Drop(1)] and isinstance(only_error(channels[1]), RequestCancelled)
    table.requests.sweep(0.0)
    assert table.sent == [Drop(1), Drop(4)]
    assert [channel.endings for channel in channels] == [1, 1, 0, 0, 1]


def test_a_client_that_cannot_be_asked_or_answered_costs_nobody_else_an_answer(caplog):
    table = Table()
    broken, good = table.open(1), table.open(2)
    broken.broken = True
    table.requests.answer(Result(1, ("1",)))
    table.requests.answer(Result(2, ("2",)))
    assert (len(table.requests), table.requests.ended, results_of(good)) == (0, 2, ["2"])
    assert "could not be sent" in caplog.text and "could not be delivered" in caplog.text
    unknown = table.open(3)
    unknown.is_cancelled = lambda: 1 / 0
    table.requests.sweep(0.0)
    assert isinstance(only_error(unknown), RequestCancelled)
