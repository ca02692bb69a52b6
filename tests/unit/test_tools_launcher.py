"""What the launcher is made of, without a Triton: finding it, laying out its files, bounding its log, reading its index."""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
from pathlib import Path

import pytest

from fastserve.errors import ToolError
from fastserve.tools import ports, triton_install
from fastserve.tools.backend_directory import build_backend_directory
from fastserve.tools.bounded_log import BoundedLog, read_tail
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.tools.server_status import ModelStatus, describe_failures, explain_unknown


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


def test_a_log_that_cannot_be_written_does_not_stop_the_server() -> None:
    log = BoundedLog(Path("/dev/full"), 1000)
    log.write(b"lost")
    log.close()


def test_a_log_starts_empty_and_a_missing_one_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old")
    (tmp_path / "log.1").write_text("older")
    BoundedLog(tmp_path / "log", 100).close()
    assert read_tail(tmp_path / "log", 10) == []
    assert read_tail(tmp_path / "nothing", 10) == []


def test_a_system_triton_is_used_when_the_variable_names_it(tmp_path: Path) -> None:
    root = make_system_triton(tmp_path)
    install = triton_install.find_triton({triton_install.TRITON_VARIABLE: str(root)})
    assert install.server == root / "bin" / "tritonserver"
    assert {file.name for file in install.python_backend_files} == {"libtriton_python.so", "triton_python_backend_stub"}
    assert install.library_directories[0] == root / "lib"


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
