"""The life of a FastServeServer: it starts, stops, starts again, and whatever ends it, nobody waits and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import fastserve
from fastserve import FastServeServer
from fastserve.errors import ToolError
from fastserve.tools.client import RequestFailed, ServerUnreachable
from fastserve.tools.encoder_client import EncoderRequest, connect_encoder
from fastserve.tools.launcher import PortInUse
from fastserve.tools.ports import free_ports
from tests.e2e.metrics_page import wait_until

WAIT_S = 60
FREE = {"port": 0, "name": "echo"}

SCRIPT = """
import sys, threading
from fastserve import FastServeServer

def inference(model, texts):
    if texts == ["block"]:
        print("blocked", flush=True)
        threading.Event().wait()
    return [model + text for text in texts]

server = FastServeServer(["said: "], lambda model, texts: inference(model[0], texts), {"port": 0, "name": "script"})
server.start()
print(server.infer("hello"), server.grpc_url, server._resources.launcher.pid, server._resources.work.path, sep="|", flush=True)
END
print("after", flush=True)
"""


def echo(model, texts):
    return texts


def left_by(pid, directory):
    """What is left of a server: processes and its work directory."""
    return [pid] * psutil.pid_exists(pid) + [directory] * Path(directory).exists()


def footprint(server):
    return server._resources.launcher.pid, server._resources.work.path


def run_script(end):
    """A plain script that serves and has answered: its process, the server's gRPC address and pid, its work directory."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastserve.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("END", end)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    answer, grpc_url, pid, directory = process.stdout.readline().strip().split("|")
    assert answer == "said: hello"
    return process, grpc_url, int(pid), Path(directory)


def catches_sigterm(pid):
    """Whether a script has come to ``server.wait()``: before, it leaves the signal to the system."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def children_hear_ctrl_c():
    """A shell that runs the tests in the background has them ignore SIGINT, which a child would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_server_can_be_stopped_and_started_again_and_leaves_nothing():
    server = FastServeServer([], echo, FREE)
    for _ in range(2):
        assert server.start() is server
        assert server.infer(["a", "b"]) == ["a", "b"]
        with pytest.raises(ToolError, match="the server of echo is running; stop"):
            server.start()
        left_behind = footprint(server)
        server.stop()
        assert left_by(*left_behind) == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastserve-function")]


def test_two_servers_run_at_once_each_on_its_own_ports_and_a_taken_one_is_told():
    (port,) = free_ports("127.0.0.1", 1)
    with FastServeServer([], echo, {"port": port, "name": "one"}) as one:
        with FastServeServer([], lambda model, texts: [text * 2 for text in texts], FREE) as other:
            assert (one.infer("a"), other.infer("a")) == ("a", "aa")
            assert len({one.http_url, one.grpc_url, other.http_url, other.grpc_url}) == 4
        with pytest.raises(PortInUse, match=rf"port: {port} is in use on 127\.0\.0\.1 by the FastServeServer of one"):
            FastServeServer([], echo, {"port": port, "name": "third"}).start()
        assert one.http_url == f"http://127.0.0.1:{port}"


def test_it_works_where_an_event_loop_is_running_as_in_a_notebook():
    async def cell():
        with FastServeServer([], echo, FREE) as server:
            return server.infer("a")

    assert asyncio.run(cell()) == "a"


def test_an_object_nobody_holds_any_more_stops_its_server():
    server = FastServeServer([], echo, FREE).start()
    left_behind = footprint(server)
    assert psutil.pid_exists(left_behind[0])
    del server
    gc.collect()
    assert left_by(*left_behind) == []


def test_stopping_under_load_answers_everyone():
    entered, outcomes = threading.Semaphore(0), []

    def function(model, texts):
        entered.release()
        return texts

    server = FastServeServer([], function, {"batch_size": 2, "num_workers": 2, **FREE}).start()

    def ask(number):
        while True:
            try:
                assert server.infer(str(number)) == str(number)
            except (RequestFailed, ServerUnreachable) as error:
                outcomes.append(error)
                return
            except ToolError as error:
                outcomes.append(error)
                assert "is closed" in str(error) or "is not running" in str(error)
                return

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(ask, number) for number in range(16)]
        for _ in range(50):
            assert entered.acquire(timeout=WAIT_S)
        server.stop()
    for future in futures:
        future.result(WAIT_S)
    assert len(outcomes) == 16
    assert all(error.status == "UNAVAILABLE" for error in outcomes if isinstance(error, RequestFailed)), outcomes


def test_a_call_that_runs_when_the_server_stops_is_finished_and_what_waits_is_told():
    entered, let = threading.Event(), threading.Event()

    def function(model, texts):
        entered.set()
        assert let.wait(WAIT_S)
        return texts

    server = FastServeServer([], function, {"batch_size": 1, **FREE}).start()
    host = server._resources.host
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(server.infer, "running")
        assert entered.wait(WAIT_S)
        waiting = pool.submit(server.infer, "waiting")
        wait_until(lambda: len(host._queue) == 1, WAIT_S)
        stopping = pool.submit(server.stop)
        with pytest.raises(RequestFailed, match="UNAVAILABLE: the server is stopping"):
            waiting.result(WAIT_S)
        let.set()
        assert running.result(WAIT_S) == "running"
        stopping.result(WAIT_S)


def test_when_the_stub_is_killed_wait_says_so_and_everything_is_stopped():
    server = FastServeServer([], echo, FREE).start()
    left_behind = footprint(server)
    (stub,) = psutil.Process(left_behind[0]).children(recursive=True)
    stub.kill()
    with pytest.raises(ToolError, match=r"^the process of model instance .* died \(signal SIGKILL.*echo says$"):
        server.wait()
    assert left_by(*left_behind) == []
    with server:
        assert server.infer("again") == "again"


def test_wait_returns_when_another_thread_stops_the_server():
    server = FastServeServer([], echo, FREE).start()
    threading.Timer(0.2, server.stop).start()
    server.wait()
    assert repr(server) == "<FastServeServer echo: not running>"


@pytest.mark.usefixtures("children_hear_ctrl_c")
@pytest.mark.parametrize(
    ("end", "number", "code", "said"),
    [
        ("server.wait()", signal.SIGINT, 0, "after"),
        ("server.wait()", signal.SIGTERM, 143, ""),
        ("import time; time.sleep(0)", None, 0, "after"),
        ("sys.exit(3)", None, 3, ""),
    ],
    ids=["Ctrl-C", "SIGTERM", "the end of the script", "sys.exit"],
)
def test_a_plain_script_ends_cleanly(end, number, code, said):
    process, _, pid, directory = run_script(end)
    with process:
        if number is not None:
            wait_until(lambda: catches_sigterm(process.pid), WAIT_S)
            process.send_signal(number)
        assert process.stdout is not None and process.stderr is not None
        rest, errors = process.stdout.read(), process.stderr.read()  # not communicate: a line may lie in stdout's buffer
    assert (process.returncode, rest.strip()) == (code, said), errors
    assert "Traceback" not in errors
    wait_until(lambda: left_by(pid, directory) == [], WAIT_S)  # whoever inherits an ended server takes a moment to notice


def test_when_the_users_process_is_killed_clients_are_told_the_server_ends_and_the_next_one_sweeps_up():
    process, grpc_url, pid, directory = run_script("server.wait()")
    with process, connect_encoder(grpc_url) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.infer, "script", EncoderRequest({"text_input": "block"}))
        assert process.stdout is not None and process.stdout.readline() == "blocked\n"
        process.kill()
        with pytest.raises(RequestFailed, match="UNAVAILABLE: the process that runs the function is gone"):
            asked.result(WAIT_S)
        process.communicate(timeout=WAIT_S)
    wait_until(lambda: not psutil.pid_exists(pid), WAIT_S)
    with FastServeServer([], echo, FREE):
        assert not directory.exists()
