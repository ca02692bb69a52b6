"""The socket between the stub and the user's process: who may use it, and what must not get through."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from fastserve.functions import local_socket
from fastserve.functions.frame_writer import FrameWriter
from fastserve.functions.function import ServedFunction
from fastserve.functions.host import FunctionHost
from fastserve.functions.local_socket import SOCKET_FILE, FunctionUnavailable, check_peer, connect
from fastserve.functions.wire import Call, Drop, Hello, Result, WireError, encode
from tests.function_doubles import WAIT_S, Stub


@pytest.fixture
def host(tmp_path):
    """One that gives texts back as they are."""
    host = FunctionHost(ServedFunction(lambda model, texts: texts, None), batch_size=1, num_workers=1)
    host.start(tmp_path)
    yield host
    host.drain(WAIT_S)
    host.close()


def raw(directory):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_S)
    connection.connect(str(directory / SOCKET_FILE))
    return connection


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (encode(Call(1, ("a",))), "got Call, allowed: Hello first"),
        (encode(Hello(2)), "different versions"),
        (encode(Hello()) + encode(Result(1, ())), "got Result, allowed: Call or Drop"),
        (b"GET / HTTP/1.1\r\n\r\n", "is this FastServe's socket?"),
    ],
)
@pytest.mark.usefixtures("host")
def test_who_does_not_speak_the_language_is_hung_up_on_and_others_go_on(tmp_path, caplog, sent, words):
    with raw(tmp_path) as stranger:
        stranger.sendall(sent)
        with contextlib.suppress(ConnectionResetError):  # it did not read all
            while stranger.recv(1 << 16):
                pass
    assert words in caplog.text
    stub = Stub(tmp_path)
    stub.call(1, "a")
    assert stub.read() == Result(1, ('"a"',))
    stub.socket.close()


def test_another_users_process_is_refused(monkeypatch):
    one, other = socket.socketpair()
    check_peer(one)
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    with pytest.raises(WireError, match="allowed: 12345678"):
        check_peer(one)
    one.close()
    other.close()


def test_connecting_where_nobody_listens_says_so(tmp_path):
    with pytest.raises(FunctionUnavailable, match="does not answer"):
        connect(tmp_path)


@pytest.mark.parametrize(
    ("greeting", "error"), [(encode(Hello(99)), "different versions"), (b"", "does not answer"), (encode(Drop(1)), "Hello first")]
)
def test_a_host_that_greets_wrongly_is_refused(tmp_path, greeting, error):
    with local_socket.listen(tmp_path) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(greeting)

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises((WireError, FunctionUnavailable), match=error):
            connect(tmp_path)
        answering.join(WAIT_S)


def test_a_writer_sends_in_order_and_does_not_mind_who_has_hung_up():
    one, other = socket.socketpair()
    writer = FrameWriter(one)
    for index in range(100):
        writer.put(b"%03d" % index)
    writer.start()
    received = b""
    while len(received) < 300:
        received += other.recv(1000)
    assert received == b"".join(b"%03d" % index for index in range(100))
    other.close()
    for _ in range(100):
        writer.put(b"nobody reads this")
    writer.close()
    one.close()
