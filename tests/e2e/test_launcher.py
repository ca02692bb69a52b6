"""The launcher with a real Triton: it starts, explains failures, and never leaves anything behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

import fastserve
from fastserve.errors import ModelNotFound, ToolError
from fastserve.tools.client import GenerateRequest, RequestFailed, ServerUnreachable, connect
from fastserve.tools.launcher import PortInUse, TritonLauncher
from tests.e2e.conftest import MakeLauncher, add_python_model
from tests.e2e.metrics_page import wait_until
from tests.e2e.processes import SHARED_MEMORY_PREFIX

DIRECTORY_ARGUMENT = "--backend-directory="
LOOK_S = 5.0
"""The watch learns a process's name at its first look. The toy is loaded faster than that; no real model is."""
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
    wait_until(lambda: len(server.children(recursive=True)) == 1)  # the stub that completed the configuration may linger
    arguments = server.cmdline()
    supervisor, stubs = server.parent(), server.children(recursive=True)
    assert supervisor is not None and len(stubs) == 1 and "triton_python_backend_stub" in stubs[0].cmdline()[0]
    found = Footprint(
        (supervisor, server, *stubs),
        value_of(SHARED_MEMORY_PREFIX, arguments),
        Path(value_of(DIRECTORY_ARGUMENT, arguments)).parent,
    )
    assert list(Path("/dev/shm").glob(found.shm_prefix + "*")) and found.directory.is_dir()
    return found


def value_of(prefix: str, arguments: list[str]) -> str:
    return next(argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix))


def test_a_started_server_answers_on_all_three_ports_and_stop_leaves_nothing(toy_launcher: MakeLauncher) -> None:
    before = psutil.Process().children()
    launcher = toy_launcher().start()
    left_behind = footprint(launcher.pid)
    for url in (launcher.http_url, launcher.grpc_url):
        with connect(url) as client, client.stream(GenerateRequest("toy", text="to be or not", returns=())) as answers:
            assert [answer.text for answer in answers] == ["to", "be", "or", "not"]
    with urllib.request.urlopen(launcher.metrics_url, timeout=10) as metrics:
        assert b"nv_inference_request_success" in metrics.read()
    launcher.stop()
    assert left_behind.remains() == []
    assert psutil.Process().children() == before
    assert not launcher.is_running()
    assert any("toy is ready" in line for line in launcher.log_tail(1000))


@pytest.mark.parametrize("attribute", ["http_url", "grpc_url"])
def test_an_error_of_the_model_reaches_the_client_with_its_message(toy_launcher: MakeLauncher, attribute: str) -> None:
    with toy_launcher() as launcher, connect(getattr(launcher, attribute)) as client:
        with pytest.raises(RequestFailed) as caught:
            list(client.stream(GenerateRequest("toy", text="error: too wise", returns=())))
        assert (caught.value.status, caught.value.message) == ("UNKNOWN", "error: too wise")
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


@pytest.mark.parametrize("attribute", ["http_url", "grpc_url"])
def test_a_models_process_that_dies_ends_the_server_and_its_requests(toy_launcher: MakeLauncher, attribute: str) -> None:
    launcher = toy_launcher().start()
    left_behind = footprint(launcher.pid)
    time.sleep(LOOK_S)
    started = time.monotonic()
    with connect(getattr(launcher, attribute)) as client, pytest.raises((RequestFailed, ServerUnreachable)):
        list(client.stream(GenerateRequest("toy", text="die", returns=())))
    launcher.wait()
    assert time.monotonic() - started < 60
    death = launcher.death()
    assert death is not None and "the process of model instance toy_0 died (signal SIGKILL" in death
    assert any(death in line for line in launcher.log_tail())
    launcher.stop()
    assert launcher.death() == death and left_behind.remains() == []


def test_models_that_are_unloaded_and_loaded_again_are_no_deaths(toy_repository: Path, toy_launcher: MakeLauncher) -> None:
    add_python_model(toy_repository, "broken", "raise ValueError('no such weights')\n")
    with toy_launcher(model_control_mode="explicit", load_models=("toy",)) as launcher:
        for name, action in (("toy", "unload"), ("toy", "load"), ("broken", "load"), ("toy", "load"), ("toy", "unload")):
            request = urllib.request.Request(f"{launcher.http_url}/v2/repository/models/{name}/{action}", method="POST")
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=30).close()
        time.sleep(7)  # longer than the watch's patience
        assert launcher.is_running() and launcher.death() is None


def test_serve_says_which_models_process_died_and_exits_with_one(toy_repository: Path) -> None:
    command = [sys.executable, "-m", "fastserve.tools.cli", "serve", "--model-repository", str(toy_repository)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        shown = iter(process.stdout.readline, "")
        url = next(line.split()[1] for line in shown if line.strip().startswith("gRPC"))
        time.sleep(LOOK_S)
        with connect(url) as client, pytest.raises((RequestFailed, ServerUnreachable)):
            list(client.stream(GenerateRequest("toy", text="die", returns=())))
        complaint = process.stderr.read()
    assert process.returncode == 1
    assert "the process of model instance toy_0 died" in " ".join(complaint.split()) and "Traceback" not in complaint


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_a_server_listens_on_an_ipv6_address_or_a_name(toy_launcher: MakeLauncher, host: str) -> None:
    with toy_launcher(host=host) as launcher:
        for url in (launcher.http_url, launcher.grpc_url):
            with connect(url) as client:
                assert len(list(client.stream(GenerateRequest("toy", text="to be", returns=())))) == 2
        with urllib.request.urlopen(launcher.metrics_url, timeout=10) as metrics:
            assert metrics.status == 200


def test_a_server_that_does_not_stop_in_time_is_killed(toy_launcher: MakeLauncher) -> None:
    launcher = toy_launcher(environment={"TOY_STOP_S": "120"}, stop_timeout_s=2.0).start()
    left_behind = footprint(launcher.pid)
    started = time.monotonic()
    launcher.stop()
    assert time.monotonic() - started < 60
    assert left_behind.remains() == []


def test_models_that_fail_are_named_with_their_reasons(toy_repository: Path, toy_launcher: MakeLauncher) -> None:
    add_python_model(toy_repository, "broken", "raise ValueError('no such weights')\n")
    (toy_repository / "without_config" / "1").mkdir(parents=True)
    before = psutil.Process().children()
    with pytest.raises(ToolError) as caught:
        toy_launcher().start()
    message = str(caught.value)
    assert "broken: Internal: ValueError: no such weights" in message
    assert "without_config: Invalid model name" in message
    assert "toy" not in message and "\n\nAt:" not in message
    assert psutil.Process().children() == before


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


def test_in_the_mode_explicit_a_model_that_is_not_there_is_an_error(toy_launcher: MakeLauncher) -> None:
    with pytest.raises(ModelNotFound, match="no model nope, only: toy"):
        toy_launcher(model_control_mode="explicit", load_models=("nope",)).start()


def test_what_triton_says_behind_its_usage_is_quoted(toy_launcher: MakeLauncher) -> None:
    with pytest.raises(ToolError, match="requires setting") as caught:
        toy_launcher(extra_args=("--load-model=toy",)).start()
    assert "Usage" not in str(caught.value)


def test_a_log_in_a_device_leaves_the_device_alone(toy_launcher: MakeLauncher) -> None:
    with toy_launcher(log_file=Path("/dev/null"), log_bytes=100) as launcher:
        assert launcher.log_tail() == []
    assert Path("/dev/null").is_char_device() and not Path("/dev/null.1").exists()


def test_arguments_triton_does_not_know_end_the_start_with_its_own_words(toy_launcher: MakeLauncher) -> None:
    with pytest.raises(ToolError, match="no-such-option"):
        toy_launcher(extra_args=("--no-such-option",)).start()


def test_a_repository_that_does_not_exist_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="fastserve export"):
        TritonLauncher(tmp_path / "nowhere").start()
