"""The user's side of a served function, over a real socket: what a stub sends is answered, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import stat
import threading

import pytest

from fastserve.errors import ErrorCode
from fastserve.functions import host as host_module
from fastserve.functions import local_socket, wire
from fastserve.functions.function import ServedFunction
from fastserve.functions.host import FunctionHost
from fastserve.functions.local_socket import SOCKET_FILE
from fastserve.functions.wire import Call, Drop, Failure, Result
from tests.function_doubles import WAIT_S, Gate, Stub, until


@pytest.fixture
def make_host(tmp_path):
    hosts = []

    def make(function, *, batch_size=4, num_workers=1):
        hosts.append(FunctionHost(ServedFunction(function, "model"), batch_size=batch_size, num_workers=num_workers))
        hosts[-1].start(tmp_path)
        return hosts[-1]

    yield make
    for host in hosts:
        host.drain(0.0)
        host.close()


@pytest.fixture
def make_stub(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(directory=tmp_path):
            stub = Stub(directory)
            stack.callback(stub.socket.close)
            return stub

        yield make


def echo(model, texts):
    return texts


def test_a_call_is_answered_with_the_functions_results(make_host, make_stub):
    make_host(echo)
    stub = make_stub()
    stub.call(5, "ein", "zwölf")
    assert stub.read() == Result(5, ('"ein"', '"zwölf"'))


class FullListener:
    """Too many files are open when the first connection comes."""

    def __init__(self, listener):
        self._listener = listener
        self._failures = [OSError(errno.EMFILE, "Too many open files")]

    def accept(self):
        if self._failures:
            raise self._failures.pop()
        return self._listener.accept()

    def shutdown(self, how):
        self._listener.shutdown(how)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()


def test_a_connection_that_cannot_be_accepted_now_is_accepted_later(make_host, make_stub, monkeypatch, caplog):
    listen = local_socket.listen
    monkeypatch.setattr(host_module.local_socket, "listen", lambda directory: FullListener(listen(directory)))
    monkeypatch.setattr(host_module, "_PAUSE_S", 0.0)
    make_host(echo)
    stub = make_stub()
    stub.call(1, "a")
    assert stub.read() == Result(1, ('"a"',))
    assert "cannot be accepted now: [Errno 24] Too many open files" in caplog.text


def test_only_the_user_can_reach_the_socket(make_host, tmp_path):
    make_host(echo)
    status = (tmp_path / SOCKET_FILE).stat()
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600


def test_a_socket_may_lie_deeper_than_an_address_is_long(make_stub, tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    host = FunctionHost(ServedFunction(echo, None), batch_size=1, num_workers=1)
    host.start(deep)
    stub = make_stub(deep)
    stub.call(1, "a")
    assert stub.read() == Result(1, ('"a"',))
    host.drain(WAIT_S)
    host.close()
    assert stub.read() is None


def test_calls_that_wait_while_the_function_works_are_one_batch(make_host, make_stub):
    gate = Gate()
    make_host(gate, batch_size=3)
    one, other = make_stub(), make_stub()
    one.call(1, "first")
    assert gate.entered() == ["first"]
    one.send(*(Call(call_id, (str(call_id),)) for call_id in (2, 3, 4)))
    gate.let()
    assert one.read() == Result(1, ('"first"',))
    batch = gate.entered()
    other.call(2, "theirs")
    gate.let(2)
    assert batch == ["2", "3", "4"]
    assert [one.read() for _ in range(3)] == [Result(call_id, (f'"{call_id}"',)) for call_id in (2, 3, 4)]
    assert other.read() == Result(2, ('"theirs"',))


def test_workers_call_the_function_at_the_same_time_with_the_same_model(make_host, make_stub):
    together = threading.Barrier(3, timeout=WAIT_S)
    models = []

    def function(model, texts):
        models.append(model)
        together.wait()
        return texts

    make_host(function, batch_size=1, num_workers=3)
    stub = make_stub()
    for call_id in range(3):
        stub.call(call_id, "x")
    assert {stub.read().call_id for _ in range(3)} == {0, 1, 2}
    assert models == ["model"] * 3


def test_a_dropped_call_is_not_run(make_host, make_stub):
    gate = Gate()
    make_host(gate, batch_size=1)
    stub = make_stub()
    stub.call(1, "first")
    assert gate.entered() == ["first"]
    stub.send(Call(2, ("dropped",)), Call(3, ("kept",)), Drop(2), Drop(1), Drop(99))
    stub.call(4, "last")
    gate.let(3)
    assert [stub.read().call_id for _ in range(3)] == [1, 3, 4]
    assert [gate.entered() for _ in range(2)] == [["kept"], ["last"]]


def test_the_calls_of_a_stub_that_hung_up_are_not_run_and_others_go_on(make_host, make_stub):
    gate = Gate()
    host = make_host(gate, batch_size=1)
    leaving, staying = make_stub(), make_stub()
    leaving.call(1, "first")
    assert gate.entered() == ["first"]
    leaving.call(2, "nobody waits for this")
    leaving.socket.close()
    until(lambda: len(host._connections) == 1)  # the host has read the call, and that nobody waits for it
    staying.call(1, "mine")
    gate.let(2)
    assert staying.read() == Result(1, ('"mine"',))
    assert gate.entered() == ["mine"]


def test_an_exception_is_told_and_the_next_batch_is_run(make_host, make_stub):
    def function(model, texts):
        if texts == ["bad"]:
            raise ValueError("no such label")
        return texts

    make_host(function, batch_size=1)
    stub = make_stub()
    stub.call(1, "bad")
    stub.call(2, "good")
    assert stub.read() == Failure(1, ErrorCode.INTERNAL, "the function function raised ValueError: no such label")
    assert stub.read() == Result(2, ('"good"',))


def test_results_too_large_to_send_are_a_failure(make_host, make_stub, monkeypatch):
    make_host(lambda model, texts: ["x" * 200])
    stub = make_stub()
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 100)
    stub.call(1, "a")
    message = stub.read()
    assert (message.code, message.call_id) == (ErrorCode.INTERNAL, 1)
    assert "too large: 202 bytes, at most 100" in message.message


def test_draining_finishes_what_runs_and_refuses_what_waits_and_what_comes_later(make_host, make_stub):
    gate = Gate()
    host = make_host(gate, batch_size=1)
    stub = make_stub()
    stub.call(1, "running")
    assert gate.entered() == ["running"]
    stub.call(2, "waiting")
    drained = threading.Thread(target=host.drain, args=(WAIT_S,))
    drained.start()
    refused = Failure(2, ErrorCode.UNAVAILABLE, "the server is stopping")
    assert stub.read() == refused
    stub.call(3, "late")
    assert stub.read() == Failure(3, refused.code, refused.message)
    gate.let()
    assert stub.read() == Result(1, ('"running"',))
    drained.join(WAIT_S)
    assert not drained.is_alive()


def test_a_function_that_does_not_end_in_time_is_answered_for_once(make_host, make_stub):
    gate = Gate()
    host = make_host(gate)
    stub = make_stub()
    stub.call(1, "for ever")
    gate.entered()
    host.drain(0.0)
    assert stub.read() == Failure(1, ErrorCode.UNAVAILABLE, "the server is stopping")
    gate.let()
    host.drain(WAIT_S)
    host.close()
    assert stub.read() is None


def test_a_stub_that_does_not_listen_cannot_keep_the_server_from_stopping(make_host, make_stub, monkeypatch):
    monkeypatch.setattr(host_module, "_LISTEN_S", 0.0)
    busy = threading.Event()

    def function(model, texts):
        busy.set()
        return ["x" * 5_000_000]  # more than a socket holds

    host = make_host(function, batch_size=1)
    stub = make_stub()
    for call_id in range(3):
        stub.call(call_id, "a")
    assert busy.wait(WAIT_S)
    drained = threading.Thread(target=host.drain, args=(0.0,), daemon=True)
    drained.start()
    drained.join(WAIT_S)
    assert not drained.is_alive()


def test_a_function_may_stop_its_own_server(make_host, make_stub):
    hosts = []

    def function(model, texts):
        hosts[0].drain(WAIT_S)
        return texts

    hosts.append(make_host(function))
    stub = make_stub()
    stub.call(1, "a")
    assert stub.read() == Failure(1, ErrorCode.UNAVAILABLE, "the server is stopping")
