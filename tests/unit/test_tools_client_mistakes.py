"""What a user, a proxy or a server can do wrong becomes a typed error of the client that says so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from fastserve.errors import InvalidRequest, ToolError
from fastserve.tools.client import (
    GenerateRequest,
    GenerateResponse,
    RequestFailed,
    ServerUnreachable,
    connect,
    is_loopback,
    refusal,
)
from tests.unit.test_tools_client import GrpcServer, HttpServer, Inputs, Script, echo


class Canned:
    """An HTTP server that gives one answer to everything."""

    def __init__(self, answer: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            request = b""
            while b"stream" not in request.partition(b"\r\n\r\n")[2]:
                request += connection.recv(65536)
            connection.sendall(self.answer)

    def close(self) -> None:
        self.thread.join()
        self.listener.close()


@pytest.fixture
def canned() -> Iterator[Callable[[bytes], Canned]]:
    servers: list[Canned] = []

    def start(answer: bytes) -> Canned:
        servers.append(Canned(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_an_http_status_that_is_certain_names_the_error(canned: Callable[[bytes], Canned]) -> None:
    for status, name in ((503, "UNAVAILABLE"), (404, "NOT_FOUND"), (418, "UNKNOWN")):
        server = canned(b'HTTP/1.1 %d X\r\nContent-Length: 17\r\n\r\n{"error": "busy"}' % status)
        with connect(server.url) as client, pytest.raises(RequestFailed) as caught:
            list(client.stream(GenerateRequest("m", text="x")))
        assert caught.value.status == name


def test_an_answer_that_cannot_be_decoded_is_unreachable_not_a_traceback(canned: Callable[[bytes], Canned]) -> None:
    server = canned(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope")
    with connect(server.url) as client, pytest.raises(ServerUnreachable):
        list(client.stream(GenerateRequest("m", text="x")))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True)]
    + [("localhost.example.com", False), ("10.0.0.1", False), ("", False), (None, False)],
)
def test_only_this_machine_is_reached_without_a_proxy(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "http://127.0.0.1:99999x", "[::1:8001"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(ToolError, match=r"use .*host:port"):
        connect(url)


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_host_that_has_no_address_is_unreachable(scheme: str) -> None:
    with connect(f"{scheme}no-such-host.invalid:8001") as client, pytest.raises(ServerUnreachable):
        list(client.stream(GenerateRequest("m", text="x")))


@pytest.mark.parametrize("scheme", ["", "http://"])
@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest("m", text="caf\udce9"), "text_input"),
        (GenerateRequest("m\udce9", text="x"), "model"),
        (GenerateRequest("m", text="x", parameters={"stop": ["\udce9"]}), "sampling_parameters"),
        (GenerateRequest("m", input_ids=[1, 2**70]), "input_ids"),
    ],
)
def test_what_cannot_be_sent_is_an_invalid_request_that_names_the_field(
    scheme: str, request_: GenerateRequest, field: str
) -> None:
    with connect(f"{scheme}127.0.0.1:9") as client, pytest.raises(InvalidRequest) as caught:
        client.stream(request_)
    assert caught.value.field == field
    str(caught.value).encode()


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_closed_client_says_that_it_is_closed(scheme: str) -> None:
    client = connect(f"{scheme}127.0.0.1:9")
    client.close()
    with pytest.raises(ToolError, match="closed"):
        client.stream(GenerateRequest("m", text="x"))


def test_a_text_that_is_a_number_is_shown_as_text() -> None:
    assert GenerateResponse({"text_output": [1.5, "a"]}, 0.0).texts == ("1.5", "a")


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HttpServer(echo)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with connect(server.url.replace("http", "HTTP")) as client:
        assert [answer.text for answer in client.stream(GenerateRequest("m", text="a b"))] == ["a", "b"]
    server.close()


@pytest.mark.parametrize("make_server", [GrpcServer, HttpServer])
def test_a_stream_whose_client_is_closed_ends_with_a_typed_error(make_server: Callable[[Script], Any]) -> None:
    stopped = threading.Event()

    def endless(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
        while not stopped.wait(0.001):
            yield {"text_output": ["on"]}

    server = make_server(endless)
    client = connect(server.url)
    stream = client.stream(GenerateRequest("m", text="x"))
    assert next(stream).text == "on"
    client.close()
    with pytest.raises((RequestFailed, ServerUnreachable)):
        for _ in range(1_000_000):
            next(stream)
    stopped.set()
    server.close()


@pytest.mark.parametrize(
    ("message", "status", "rest"),
    [
        ("UNAVAILABLE: the queue is full: 3 requests", "UNAVAILABLE", "the queue is full: 3 requests"),
        ("[request id: <id_unknown>] INVALID_ARG: top_p: got 2", "INVALID_ARG", "top_p: got 2"),
        ("Request for unknown model: 'x' is not found", "NOT_FOUND", "Request for unknown model: 'x' is not found"),
        ("error: too wise", "UNKNOWN", "error: too wise"),
    ],
)
def test_the_kind_of_an_error_is_read_from_its_message(message: str, status: str, rest: str) -> None:
    error = refusal(message, "UNKNOWN")
    assert (error.status, error.message) == (status, rest)
