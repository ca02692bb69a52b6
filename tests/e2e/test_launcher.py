"""The launcher with a real Triton: it starts, explains failures, and never leaves anything behind."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import fastserve
from fastserve.errors import ModelNotFound, ToolError
from fastserve.tools.client import GenerateRequest, RequestFailed, connect
from fastserve.tools.launcher import PortInUse, TritonLauncher
from tests.e2e.conftest import MakeLauncher, add_python_model

PREFIX_ARGUMENT = "--backend-config=python,shm-region-prefix-name="
DIRECTORY_ARGUMENT = "--backend-directory="
ORPHAN = """
import sys, time
from pathlib import Path
from fastserve.tools.launcher import TritonLauncher
launcher = TritonLauncher(Path(sys.argv[1])).start()
print(launcher.pid, flush=True)
time.sleep(600)
"""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Everything a running Triton has on this machine: processes, shared memory, work directory."""

    processes: tuple[psutil.Process, ...]
    shm_prefix: str
    directory: Path

    def remains(self) -> list[str]:
        left = [str(process) for process in self.processes if process.is_running()]
        left += [str(path) for path in Path("/dev/shm").glob(self.shm_prefix + "*")]
        return left + ([str(self.directory)] if self.directory.exists() else [])


def footprint(pid: int | None) -> Footprint:
    """``pid``: of a tritonserver that serves one model."""
    server = psutil.Process(pid)
    arguments = server.cmdline()
    supervisor, stubs = server.parent(), server.children(recursive=True)
    assert supervisor is not None and len(stubs) == 1 and "triton_python_backend_stub" in stubs[0].cmdline()[0]
    found = Footprint(
        (supervisor, server, *stubs), value_of(PREFIX_ARGUMENT, arguments), Path(value_of(DIRECTORY_ARGUMENT, arguments)).parent
    )
    assert list(Path("/dev/shm").glob(found.shm_prefix + "*")) and found.directory.is_dir()
    return found


def value_of(prefix: str, arguments: list[str]) -> str:
    return next(argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_started_server_answers_on_all_three_ports_and_stop_leaves_nothing(toy_launcher: MakeLauncher) -> None:
    launcher = toy_launcher().start()
    left_behind = footprint(launcher.pid)
    for url in (launcher.http_url, launcher.grpc_url):
        with connect(url) as client, client.stream(GenerateRequest("toy", text="to be or not", returns=())) as answers:
            assert [answer.text for answer in answers] == ["to", "be", "or", "not"]
    with urllib.request.urlopen(launcher.metrics_url, timeout=10) as metrics:
        assert b"nv_inference_request_success" in metrics.read()
    launcher.stop()
    assert left_behind.remains() == []
    assert not psutil.Process().children()
    assert not launcher.is_running()
    assert any("toy is ready" in line for line in launcher.log_tail(1000))


@pytest.mark.parametrize("attribute", ["http_url", "grpc_url"])
def test_an_error_of_the_model_reaches_the_client_with_status_and_message(toy_launcher: MakeLauncher, attribute: str) -> None:
    with toy_launcher() as launcher, connect(getattr(launcher, attribute)) as client:
        with pytest.raises(RequestFailed) as caught:
            list(client.stream(GenerateRequest("toy", text="error: too wise", returns=())))
        assert (caught.value.status, caught.value.message) == ("INVALID_ARG", "error: too wise")
        with pytest.raises(RequestFailed) as caught:
            list(client.stream(GenerateRequest("nobody", text="hello", returns=())))
        assert caught.value.status == "NOT_FOUND" and "nobody" in caught.value.message


def test_the_server_and_its_stubs_die_with_a_parent_that_is_killed(toy_repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(fastserve.__file__).parent.parent)}
    command = [sys.executable, "-c", ORPHAN, str(toy_repository)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        left_behind = footprint(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: not left_behind.remains())
    assert left_behind.remains() == []


def test_a_killed_supervisor_takes_the_server_and_its_stubs_along(toy_launcher: MakeLauncher) -> None:
    launcher = toy_launcher().start()
    left_behind = footprint(launcher.pid)
    left_behind.processes[0].kill()
    launcher.wait()
    launcher.stop()
    wait_until(lambda: not left_behind.remains())
    assert left_behind.remains() == []


def test_a_killed_server_is_noticed_and_cleaned_up_without_being_asked(toy_launcher: MakeLauncher) -> None:
    launcher = toy_launcher().start()
    left_behind = footprint(launcher.pid)
    left_behind.processes[1].kill()
    launcher.wait()
    assert not launcher.is_running()
    assert left_behind.remains() == [str(left_behind.directory)]  # the log is still readable
    launcher.stop()
    assert left_behind.remains() == []


def test_a_server_that_does_not_stop_in_time_is_killed(toy_launcher: MakeLauncher) -> None:
    launcher = toy_launcher(environment={"TOY_STOP_S": "120"}, stop_timeout_s=2.0).start()
    left_behind = footprint(launcher.pid)
    started = time.monotonic()
    launcher.stop()
    assert time.monotonic() - started < 10
    assert left_behind.remains() == []


def test_models_that_fail_are_named_with_their_reasons(toy_repository: Path, toy_launcher: MakeLauncher) -> None:
    add_python_model(toy_repository, "broken", "raise ValueError('no such weights')\n")
    (toy_repository / "without_config" / "1").mkdir(parents=True)
    with pytest.raises(ToolError) as caught:
        toy_launcher().start()
    message = str(caught.value)
    assert "broken: Internal: ValueError: no such weights" in message
    assert "without_config: Invalid model name" in message
    assert "toy" not in message and "\n\nAt:" not in message
    assert not psutil.Process().children()


def test_a_port_that_is_in_use_is_named(toy_launcher: MakeLauncher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"grpc port {port} is in use on 127\.0\.0\.1"):
            toy_launcher(grpc_port=port).start()


def test_a_talkative_backend_cannot_fill_the_disk(toy_launcher: MakeLauncher, tmp_path: Path) -> None:
    limit = 64 << 10
    log_file = tmp_path / "triton.log"
    launcher = toy_launcher(environment={"TOY_LOG_BYTES": str(3 << 20)}, log_file=log_file, log_bytes=limit).start()
    sizes = [path.stat().st_size for path in tmp_path.glob("triton.log*")]
    assert len(sizes) == 2 and limit / 4 < sum(sizes) <= limit
    assert any("Started HTTPService" in line for line in launcher.log_tail())


def test_in_the_mode_explicit_only_the_models_asked_for_are_loaded(toy_repository: Path, toy_launcher: MakeLauncher) -> None:
    add_python_model(toy_repository, "second", "")
    with toy_launcher(model_control_mode="explicit", load_models=("toy",)) as launcher:
        assert {model.name: model.ready for model in launcher.models()} == {"toy": True, "second": False}


def test_arguments_triton_does_not_know_end_the_start_with_its_own_words(toy_launcher: MakeLauncher) -> None:
    with pytest.raises(ToolError, match="no-such-option"):
        toy_launcher(extra_args=("--no-such-option",)).start()


def test_a_repository_that_does_not_exist_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="fastserve export"):
        TritonLauncher(tmp_path / "nowhere").start()
