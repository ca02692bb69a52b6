"""Triton's side of a served function with a process on the other end: threads, bounds, and what happens when it is lost."""

from __future__ import annotations

import socket

import pytest

from fastserve.errors import DeadlineExceeded, ErrorCode, InvalidRequest, QueueFull, ResponderFailed, ShuttingDown
from fastserve.functions import wire
from fastserve.functions.local_socket import FunctionUnavailable
from fastserve.functions.wire import Call, Drop, Result
from fastserve.triton.responder import Rejected
from tests.function_doubles import Service, SignalingChannel, only_error, results_of


@pytest.fixture
def make_service(tmp_path):
    services = []

    def make(**parameters):
        services.append(Service(tmp_path, **parameters))
        return services[-1]

    yield make
    for service in services:
        service.close()


def test_requests_go_out_in_order_and_answers_come_back_in_any(make_service):
    service = make_service()
    channels = [service.submit(text, k=1) for text in "abc"]
    calls = [service.read() for _ in channels]
    assert calls == [Call(index, (text,), {"k": 1}) for index, text in enumerate("abc")]
    for index in (2, 0, 1):
        service.send(Result(index, (str(index),)))
    assert [service.await_end() for _ in channels] == [channels[index] for index in (2, 0, 1)]
    assert [results_of(channel) for channel in channels] == [["0"], ["1"], ["2"]]


def test_more_requests_than_the_bound_are_refused_until_one_ends(make_service):
    service = make_service(max_queue_size="2")
    channels = [service.submit("a"), service.submit("b")]
    with pytest.raises(QueueFull, match="2 requests, max_queue_size is 2"):
        service.submit("c")
    service.send(Result(0, ("1",)))
    assert service.await_end() is channels[0]
    service.submit("c")
    assert [service.read().texts for _ in range(3)] == [("a",), ("b",), ("c",)]


def test_a_deadline_passes_while_the_function_says_nothing(make_service):
    service = make_service()
    channel = service.submit("a", deadline_ms=500)
    assert service.await_end() is channel
    assert isinstance(only_error(channel), DeadlineExceeded)
    assert [service.read(), service.read()] == [Call(0, ("a",)), Drop(0)]


@pytest.mark.parametrize("how", ["ended", "spoke nonsense"])
def test_when_the_functions_process_is_lost_open_and_later_requests_are_unavailable(make_service, how, caplog):
    service = make_service()
    channels = [service.submit("a"), service.submit("b")]
    if how == "ended":
        service.socket.shutdown(socket.SHUT_RDWR)
    else:
        service.socket.sendall(b"\xff" * 100)
    assert {service.await_end(), service.await_end()} == set(channels)
    channels.append(service.submit("later"))
    assert service.await_end() is channels[2]
    for channel in channels:
        error = only_error(channel)
        assert (type(error), error.code) == (FunctionUnavailable, ErrorCode.UNAVAILABLE)
        assert "the process that runs the function is gone" in str(error)
    assert "is gone" in caplog.text


def test_unloading_ends_what_is_open_and_hangs_up(make_service):
    service = make_service()
    channel = service.submit("a")
    assert service.read() == Call(0, ("a",))
    service.stop()
    assert isinstance(only_error(channel), ShuttingDown)
    assert service.socket.recv(1) == b""


@pytest.mark.parametrize(("text", "parameters", "field"), [("x" * 200, {}, "text_input"), ("x", {"k": "y" * 200}, "parameters")])
def test_what_is_too_large_to_send_is_the_clients_mistake(make_service, monkeypatch, text, parameters, field):
    service = make_service()
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 100)
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 100)
    with pytest.raises(InvalidRequest, match=f"{field}: .* at most 100 can be sent at once"):
        service.submit(text, **parameters)


def test_a_request_that_was_refused_is_answered_by_the_responder(make_service):
    service = make_service()
    channel = SignalingChannel(service.ended)
    service.service._responder.put(Rejected(channel, InvalidRequest("k", 1, "2")))
    assert service.await_end() is channel and isinstance(only_error(channel), InvalidRequest)


def test_a_bug_in_answering_ends_every_open_request_and_later_ones_are_served(make_service, monkeypatch, caplog):
    service = make_service()
    channels = [service.submit("a"), service.submit("b")]
    requests = service.service._responder._requests
    monkeypatch.setattr(requests, "answer", lambda message: 1 / 0)
    service.send(Result(0, ("1",)))
    assert {service.await_end(), service.await_end()} == set(channels)
    assert {type(only_error(channel)) for channel in channels} == {ResponderFailed}
    monkeypatch.undo()
    later = service.submit("c")
    service.send(Result(2, ("3",)))
    assert service.await_end() is later and results_of(later) == ["3"]
    assert "ZeroDivisionError" in caplog.text
