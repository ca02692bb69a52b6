"""When a model's process counts as dead, with a process table made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.tools.stub_watch import StubWatch

SERVER = 70
STUB = "triton_python_b"
COMMAND_LINE = "\0".join(
    ("/b/triton_python_backend_stub", "/m/model.py", "shm", "1", "1", "70", "/b", "3", "llama_0_0", "DEFAULT", "")
)


class ProcessTable:
    """Processes below ``proc`` and the watch over them, with a clock that stands still until it is moved."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.now = 100.0
        self.watch = StubWatch(SERVER, lambda: self.now, proc)
        (proc / "meminfo").write_text("not a process")

    def set(self, pid: int, state: str, *, parent: int = SERVER, name: str = STUB, status: int = 0) -> None:
        directory = self.proc / str(pid)
        directory.mkdir(exist_ok=True)
        (directory / "stat").write_text(f"{pid} ({name}) {state} {parent} 0 0 {status}\n")
        (directory / "cmdline").write_text("" if state == "Z" else COMMAND_LINE)

    def remove(self, pid: int) -> None:
        for file in (self.proc / str(pid)).iterdir():
            file.unlink()
        (self.proc / str(pid)).rmdir()

    def look_after(self, seconds: float) -> str | None:
        self.now += seconds
        return self.watch.look()


@pytest.fixture
def table(tmp_path: Path) -> ProcessTable:
    return ProcessTable(tmp_path)


def test_stubs_that_run_are_fine(table: ProcessTable) -> None:
    table.set(71, "S")
    table.set(72, "R")
    assert [table.look_after(10) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("status", "how"), [(9, "signal SIGKILL; out of memory?"), (11, "signal SIGSEGV"), (3 << 8, "exit code 3")]
)
def test_a_stub_that_triton_does_not_collect_has_died(table: ProcessTable, status: int, how: str) -> None:
    table.set(71, "S")
    assert table.look_after(1) is None
    table.set(71, "Z", status=status)
    assert [table.look_after(1), table.look_after(4)] == [None, None]
    assert table.look_after(1) == f"the process of model instance llama_0_0 died ({how})"


def test_a_stub_that_triton_ended_itself_is_collected_and_no_death(table: ProcessTable) -> None:
    table.set(71, "S")
    table.look_after(1)
    table.set(71, "Z")
    assert table.look_after(1) is None
    table.remove(71)
    assert [table.look_after(10), table.look_after(10)] == [None, None]


def test_only_stubs_of_this_server_are_watched(table: ProcessTable) -> None:
    table.set(71, "Z", parent=4)
    table.set(72, "Z", name="tritonserver")
    assert [table.look_after(10), table.look_after(10)] == [None, None]


def test_a_stub_that_died_before_its_first_look_has_no_name(table: ProcessTable) -> None:
    table.set(71, "Z", status=9)
    table.look_after(0)
    assert str(table.look_after(5)).startswith("the process of model instance (unknown) died")
