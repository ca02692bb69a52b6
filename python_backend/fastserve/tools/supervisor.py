"""The small process between a tool and ``tritonserver``: whatever happens to the tool, nothing is left behind.

Run as ``python -m fastserve.tools.supervisor``. The first line of stdin is a :class:`Job` as JSON; afterwards stdin is
the leash: ``stop`` asks for a graceful stop, end of file (the tool died) does the same and removes the work directory
too. On stdout JSON lines: ``{"pid": ...}`` (or ``{"error": ...}``) and, after everything is cleaned up, ``{"exit": ...}``.
When the process of a model dies, ``{"death": ...}`` says so and the server is killed: its clients get an error at once
instead of waiting for ever.

A killed supervisor takes the server with it (PR_SET_PDEATHSIG); stubs whose server is gone end themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import selectors
import shutil
import signal
import subprocess
import time
from pathlib import Path

from fastserve.tools.bounded_log import BoundedLog
from fastserve.tools.stub_watch import StubWatch

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SHARED_MEMORY = Path("/dev/shm")
STOP = b"stop\n"
_TICK_S = 0.1
_WATCH_S = 0.25
_WATCH_SHARE = 0.01
"""Of a core, at most: where thousands of processes run, one look takes milliseconds."""
_PIECE = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What to run and what to clean up. ``directory`` is the work directory and the server's working directory."""

    command: list[str]
    environment: dict[str, str]
    directory: str
    log_file: str
    log_bytes: int
    shm_prefix: str
    stop_timeout_s: float
    echo: bool = False
    """Copy the server's output to this process's stderr as well; what its reader does not take at once is left out."""


class Supervisor:
    """Owns one ``tritonserver``. One thread, no locks."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._log = BoundedLog(Path(job.log_file), job.log_bytes)
        self._log.write(log_heading(job.shm_prefix).encode() + b"\n")
        self._parent = os.getppid()
        self._orphaned = False
        self._kill_at: float | None = None
        self._status: int | None = None
        self._selector = selectors.DefaultSelector()
        self._server = self._spawn()
        self._stubs = StubWatch(self._server.pid)
        self._look_at = time.monotonic()
        assert self._server.stdout is not None
        self._output = self._server.stdout.fileno()
        os.set_blocking(self._output, False)
        os.set_blocking(0, False)
        self._selector.register(self._output, selectors.EVENT_READ, self._on_output)
        self._selector.register(0, selectors.EVENT_READ, self._on_leash)

    def run(self) -> int:
        """Until the server has ended and nothing of it is left; its exit status (negative: killed by that signal)."""
        _report(pid=self._server.pid)
        while self._status is None:
            for key, _ in self._selector.select(_TICK_S):
                key.data()
            if os.getppid() != self._parent and not self._orphaned:
                self._orphaned = True
                self.stop()
            self._watch()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal(signal.SIGKILL)
            self._reap()
        kill_children()
        self._on_output()
        self._clean_up()
        _report(exit=self._status)
        return self._status

    def stop(self) -> None:
        """Ask the server to end; it is killed when it has not done so within the job's limit."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._job.stop_timeout_s
            self._signal(signal.SIGTERM)

    def _watch(self) -> None:
        """Kill a server that lost a model's process: it would not notice, and its requests would never be answered."""
        if self._kill_at is not None or time.monotonic() < self._look_at:
            return
        started = time.thread_time()
        death = self._stubs.look()
        cost = time.thread_time() - started
        self._look_at = time.monotonic() + max(_WATCH_S, cost / _WATCH_SHARE)
        if death is not None:
            self._log.write(f"fastserve: {death}; the server is ended\n".encode())
            _report(death=death)
            self._kill_at = time.monotonic()

    def _spawn(self) -> subprocess.Popen[bytes]:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return subprocess.Popen(
            self._job.command,
            env=self._job.environment,
            cwd=self._job.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 (one thread here)
        )

    def _signal(self, number: signal.Signals) -> None:
        """Only :meth:`_reap` collects the server (``Popen.send_signal`` would too), so the pid is still its own."""
        if self._status is None:
            os.kill(self._server.pid, number)

    def _on_output(self) -> None:
        """Move what the server and its stubs wrote to the log."""
        while piece := _read(self._output):
            self._log.write(piece)
            if self._job.echo:
                echo(piece, 2)
        if piece == b"" and self._output in self._selector.get_map():
            self._selector.unregister(self._output)

    def _on_leash(self) -> None:
        command = _read(0)
        if command is None:
            return
        self._orphaned |= not command.endswith(STOP)
        self._selector.unregister(0)
        self.stop()

    def _reap(self) -> None:
        """Collect every ended child: the server, and processes that were left to us when their parent died."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._server.pid:
                    self._status = self._server.returncode = os.waitstatus_to_exitcode(status)

    def _clean_up(self) -> None:
        remove_shared_memory(self._job.shm_prefix)
        self._log.close()
        if self._orphaned:
            shutil.rmtree(self._job.directory, ignore_errors=True)


def log_heading(shm_prefix: str) -> str:
    """The first line of a server's log: the file may hold older ones'."""
    return f"--- fastserve starts tritonserver, {shm_prefix} ---"


def echo(piece: bytes, descriptor: int) -> None:
    """Write without waiting: a reader that stands still must not stop the server. The descriptor is shared with other
    processes, so it cannot be made non-blocking; but a pipe that can be written to takes this much at once.
    """
    with contextlib.suppress(OSError):
        for start in range(0, len(piece), select.PIPE_BUF):
            if not select.select([], [descriptor], [], 0)[1]:
                return
            os.write(descriptor, piece[start : start + select.PIPE_BUF])


def remove_shared_memory(prefix: str) -> None:
    """Unlink the regions of a server that could not do it itself. ``prefix`` must be unique to that server."""
    for region in SHARED_MEMORY.glob(prefix + "*"):
        region.unlink(missing_ok=True)


def kill_children() -> None:
    """Kill and collect every child of this process, including grandchildren that become children on the way."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state_and_parent = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(state_and_parent[1]) == os.getpid():
                children.append(int(stat.parent.name))
    return children


def _read(descriptor: int) -> bytes | None:
    """What can be read now: bytes, ``b""`` at end of file, None when nothing is there."""
    try:
        return os.read(descriptor, _PIECE)
    except BlockingIOError:
        return None


def _report(**values: object) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(1, json.dumps(values).encode() + b"\n")


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            return
        line += piece
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervisor = Supervisor(Job(**json.loads(line)))
    except OSError as error:
        _report(error=str(error))
        return
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    supervisor.run()


if __name__ == "__main__":
    main()
