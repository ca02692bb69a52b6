"""What the launcher is made of, without a Triton: finding it, laying out its files, bounding its log, reading its index."""

from __future__ import annotations

import os
import socket
import stat
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from fastserve.errors import ModelNotFound, ToolError
from fastserve.tools import launcher, ports, server_status, supervised, triton_install
from fastserve.tools.backend_directory import build_backend_directory
from fastserve.tools.bounded_log import BoundedLog, read_tail
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.tools.server_status import ModelStatus, describe_failures, explain_unknown, model_statuses, require, without_usage
from fastserve.tools.supervised import SupervisedServer
from fastserve.tools.supervisor import Job, echo


def make_system_triton(root: Path) -> Path:
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so", "backends/python/triton_python_backend_stub"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "lib").mkdir()
    return root


def test_a_log_never_exceeds_its_limit_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", 1000)
    for number in range(5000):
        log.write(f"line {number}\n".encode())
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    log.close()
    lines = read_tail(tmp_path / "log", 30)
    assert lines == [f"line {number}" for number in range(4970, 5000)]


def test_of_a_piece_larger_than_the_log_the_end_is_kept(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", 100)
    log.write(b"x" * 5000 + b"the end")
    log.close()
    assert read_tail(tmp_path / "log", 1)[0].endswith("the end")
    assert (tmp_path / "log").stat().st_size <= 50


def test_a_device_is_written_to_and_never_renamed(tmp_path: Path) -> None:
    name = tmp_path / "device"
    name.symlink_to("/dev/full")  # every write fails: no space left
    log = BoundedLog(name, 100)
    for _ in range(20):
        log.write(b"lost " * 10)
    log.close()
    assert stat.S_ISCHR(name.stat().st_mode) and [path.name for path in tmp_path.iterdir()] == ["device"]


def test_a_named_pipe_whose_reader_stands_still_stops_nobody_and_is_not_read_back(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = BoundedLog(pipe, 100)
    for _ in range(5000):
        log.write(b"x" * 50)
    log.close()
    assert os.read(reader, 50) == b"x" * 50
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and read_tail(pipe, 10) == []


def test_a_log_whose_older_half_cannot_be_replaced_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log.1" / "precious").mkdir(parents=True)
    log = BoundedLog(tmp_path / "log", 100)
    for _ in range(20):
        log.write(b"x" * 20)
    log.close()
    assert (tmp_path / "log").stat().st_size <= 50 and (tmp_path / "log.1" / "precious").is_dir()


def test_a_log_is_appended_to_and_what_stood_there_is_not_taken_for_this_runs(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("port already in use\n")
    (tmp_path / "log.1").write_text("older\n")
    log = BoundedLog(tmp_path / "log", 100)
    log.write(b"--- run 2 ---\nnew\n")
    log.close()
    assert (tmp_path / "log").read_text() == "port already in use\n--- run 2 ---\nnew\n"
    assert (tmp_path / "log.1").read_text() == "older\n"
    assert read_tail(tmp_path / "log", 10) == ["older", "port already in use", "--- run 2 ---", "new"]
    assert read_tail(tmp_path / "log", 10, after="--- run 2 ---") == ["new"]
    assert read_tail(tmp_path / "log", 10, after="rotated away") == read_tail(tmp_path / "log", 10)
    assert read_tail(tmp_path / "nothing", 10) == []


def test_output_that_nobody_reads_is_dropped_instead_of_waited_for() -> None:
    reader, writer = os.pipe()
    writing = threading.Thread(target=echo, args=(b"x" * (4 << 20), writer), daemon=True)
    writing.start()
    writing.join(20)
    assert not writing.is_alive()
    assert os.read(reader, 10) == b"x" * 10
    os.close(writer)
    os.close(reader)


def test_a_system_triton_is_used_when_the_variable_names_it(tmp_path: Path) -> None:
    root = make_system_triton(tmp_path)
    install = triton_install.find_triton({triton_install.TRITON_VARIABLE: str(root)})
    assert install.server == root / "bin" / "tritonserver"
    assert {file.name for file in install.python_backend_files} == {"libtriton_python.so", "triton_python_backend_stub"}
    assert install.library_directories[0] == root / "lib"


def test_a_system_triton_may_be_named_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_system_triton(tmp_path / "triton")
    monkeypatch.chdir(tmp_path)
    install = triton_install.find_triton({triton_install.TRITON_VARIABLE: "triton"})
    assert install.server == tmp_path / "triton/bin/tritonserver"  # the server runs in another directory


@pytest.mark.parametrize("missing", ["bin/tritonserver", "backends/python/triton_python_backend_stub"])
def test_a_system_triton_that_is_incomplete_is_refused(tmp_path: Path, missing: str) -> None:
    root = make_system_triton(tmp_path)
    (root / missing).unlink()
    with pytest.raises(ToolError, match=Path(missing).name):
        triton_install.system_triton(root)


def test_no_triton_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"pip install 'triton-fastserve\[serve\]'"):
        triton_install.find_triton({})


def test_a_python_without_a_stub_is_told_which_ones_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "PYTHON_VERSION", "3.99")
    with pytest.raises(ToolError, match=r"no stub for Python 3\.99, only for .*3\.11"):
        triton_install.find_triton({})


def test_the_servers_environment_puts_this_interpreter_first_and_keeps_the_rest(tmp_path: Path) -> None:
    install = triton_install.system_triton(make_system_triton(tmp_path))
    environment = triton_install.server_environment(install, {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/own", "OTHER": "1"})
    assert environment["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
    assert environment["LD_LIBRARY_PATH"].split(os.pathsep)[0] == str(tmp_path / "lib")
    assert environment["LD_LIBRARY_PATH"].endswith("/own")
    assert environment["OTHER"] == "1"


def test_a_static_interpreter_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert triton_install.python_library() is None


def test_the_backend_directory_has_copies_of_the_python_backend_and_links_to_ours(tmp_path: Path) -> None:
    install = triton_install.system_triton(make_system_triton(tmp_path / "triton"))
    directory = build_backend_directory(tmp_path / "backends", install)
    assert not (directory / "python" / "libtriton_python.so").is_symlink()
    assert (directory / "fastserve" / "model.py").is_file()
    assert (directory / "fastserve" / "fastserve" / "errors.py").is_file()


def test_free_ports_are_different_and_a_port_somebody_listens_on_is_not_free() -> None:
    assert len(set(ports.free_ports("127.0.0.1", 3))) == 3
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not ports.is_free("127.0.0.1", taken.getsockname()[1])


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ToolError, match="not an address of this machine"):
        ports.is_free("192.0.2.1", 8000)  # reserved for documentation


def test_a_server_that_listens_everywhere_is_reached_over_loopback(tmp_path: Path) -> None:
    launcher = TritonLauncher(tmp_path, LaunchOptions(host="0.0.0.0", http_port=80, grpc_port=81, metrics_port=82))
    urls = (launcher.http_url, launcher.grpc_url, launcher.metrics_url)
    assert urls == ("http://127.0.0.1:80", "127.0.0.1:81", "http://127.0.0.1:82/metrics")


def test_an_ipv6_address_is_bracketed_in_urls_and_has_free_ports(tmp_path: Path) -> None:
    launcher = TritonLauncher(tmp_path, LaunchOptions(host="::1", http_port=80, grpc_port=81, metrics_port=82))
    assert (launcher.http_url, launcher.grpc_url) == ("http://[::1]:80", "[::1]:81")
    assert ports.reachable_address("::") == "::1"
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        (port,) = ports.free_ports("::1", 1)
        assert ports.is_free("::1", port)


def test_a_host_name_becomes_the_numeric_address_that_triton_needs() -> None:
    assert ports.numeric_address("localhost") in ("127.0.0.1", "::1")
    assert ports.numeric_address("") == "0.0.0.0"
    with pytest.raises(ToolError, match="not an address of this machine"):
        ports.numeric_address("no.such.host.invalid")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LaunchOptions(http_port=9000, grpc_port=9000), "must differ, got 9000, 9000"),
        (LaunchOptions(load_models=("m",)), "model control mode explicit only"),
    ],
)
def test_options_that_cannot_go_together_are_told_before_anything_starts(
    tmp_path: Path, options: LaunchOptions, words: str
) -> None:
    with pytest.raises(ToolError, match=words):
        TritonLauncher(tmp_path, options).start()


def test_no_room_for_the_work_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prefix: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launcher.tempfile, "mkdtemp", fail)
    install = triton_install.system_triton(make_system_triton(tmp_path / "triton"))
    with pytest.raises(ToolError, match=r"No space left on device.*TMPDIR"):
        TritonLauncher(tmp_path, install=install).start()


def test_a_supervisor_that_dies_at_once_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised.sys, "executable", "/bin/false")
    job = Job(["tritonserver"], {"LONG": "x" * (1 << 20)}, str(tmp_path), str(tmp_path / "log"), 1000, "none-", 1.0)
    with pytest.raises(ToolError, match="tritonserver could not be started"):
        SupervisedServer(job)


def test_a_log_file_is_meant_relative_to_the_user_not_to_the_work_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def remember(job: Job) -> SupervisedServer:
        jobs.append(job)
        raise ToolError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "SupervisedServer", remember)
    install = triton_install.system_triton(make_system_triton(tmp_path / "triton"))
    with pytest.raises(ToolError, match="enough"):
        TritonLauncher(tmp_path, LaunchOptions(log_file=Path("my.log")), install).start()
    assert jobs[0].log_file == str(tmp_path / "my.log")


def test_what_triton_refuses_is_quoted_without_its_list_of_options() -> None:
    usage = ["Usage: tritonserver [options]", "  --help", "\tPrint usage", ""]
    assert without_usage(["unrecognized option", *usage]) == ["unrecognized option"]
    assert without_usage([*usage, "Error: use explicit"]) == ["Error: use explicit"]
    assert without_usage(["started", "ended"]) == ["started", "ended"]


@pytest.mark.parametrize("answer", [(400, b'{"error": "failed to open the repository"}'), (200, b"{}"), (500, b"")])
def test_a_repository_triton_cannot_list_is_an_error_with_its_words(
    answer: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_status, "request", lambda *_: answer)
    with pytest.raises(ToolError, match=f"HTTP {answer[0]}: {answer[1].decode() or 'an empty answer'}"):
        model_statuses("127.0.0.1", 1)


def test_what_a_model_is_for_is_in_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {"/v2/models/a%2Fb/config": b'{"parameters": {"task": {"string_value": "reranking"}}}', "/v2/models/c/config": b"{}"}
    monkeypatch.setattr(server_status, "request", lambda host, port, method, path: (200, bodies[path]))
    assert [server_status.model_task("127.0.0.1", 1, name) for name in ("a/b", "c")] == ["reranking", "text-generation"]


def test_a_model_that_is_asked_for_but_not_there_is_named_with_those_that_are() -> None:
    require([ModelStatus("llama", "1", "READY", "")], ["llama"])
    with pytest.raises(ModelNotFound, match="no model nope, only: llama"):
        require([ModelStatus("llama", "1", "READY", "")], ["nope"])


def test_a_folder_that_was_never_loaded_gets_its_reason_from_the_log() -> None:
    log = ["""E1123 repository_manager.cc:1] "Poll failed for model directory 'bad': failed to open text file config.pbtxt\""""]
    statuses = explain_unknown([ModelStatus("bad", "", "", ""), ModelStatus("odd", "", "", "")], log)
    assert describe_failures(statuses).splitlines() == [
        "  bad: failed to open text file config.pbtxt",
        "  odd: Triton did not load it; is there a config.pbtxt and a version folder?",
    ]


def test_a_failure_is_told_without_pythons_stack_and_unloaded_versions_are_no_failure() -> None:
    failed = ModelStatus("m", "1", "UNAVAILABLE", "Internal: ValueError: boom\n\nAt:\n  model.py(1): <module>\n")
    unloaded = ModelStatus("m", "0", "UNAVAILABLE", "unloaded")
    assert describe_failures([failed, unloaded, ModelStatus("n", "1", "READY", "")]) == "  m: Internal: ValueError: boom"
