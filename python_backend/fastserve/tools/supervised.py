"""A tool's end of the leash: starts the supervisor with its server, ends it, and hears how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import fastserve
from fastserve.errors import ToolError
from fastserve.tools import supervisor

_SUPERVISOR_GRACE_S = 10.0
"""What the supervisor may need, after the server's own limit, to kill and clean up."""


class SupervisedServer:
    """A running ``tritonserver`` and its supervisor. ``pid``: of the server."""

    def __init__(self, job: supervisor.Job) -> None:
        """Start both. Raises :class:`ToolError` when either cannot be started."""
        self._job = job
        self._reports: dict[str, object] = {}
        environment = {**os.environ, "PYTHONPATH": str(Path(fastserve.__file__).resolve().parent.parent)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", supervisor.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=job.directory,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read; that shows below
            self._process.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            self._process.stdin.flush()
        while not self._reports and (line := self._process.stdout.readline()):  # skips what is not a report
            self._take_in(line)
        if "pid" not in self._reports:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            reason = self._reports.get("error", "its supervisor died")
            raise ToolError(f"{job.command[0]} could not be started ({reason}); `fastserve doctor` may say more")
        self.pid = int(str(self._reports["pid"]))

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        """Until the server has ended by itself."""
        self._process.wait()

    def death(self) -> str | None:
        """After the end: the sentence that says which model's process died, if that ended the server."""
        assert self._process.stdout is not None
        if not self.is_running() and not self._process.stdout.closed:
            for line in self._process.stdout:
                self._take_in(line)
            self._process.stdout.close()
        death = self._reports.get("death")
        return None if death is None else str(death)

    def end(self) -> None:
        """Ask for a graceful stop, kill what does not end in time, and leave nothing of it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):  # it ended by itself
            self._process.stdin.write(supervisor.STOP)
            self._process.stdin.flush()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(self._job.stop_timeout_s + _SUPERVISOR_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # takes the server along
            self._process.wait()
        self._process.stdout.close()
        supervisor.remove_shared_memory(self._job.shm_prefix)

    def _take_in(self, line: bytes) -> None:
        """One line of the supervisor; what is none of its (a sitecustomize may print) is left out."""
        with contextlib.suppress(ValueError):
            report = json.loads(line)
            if isinstance(report, dict):
                self._reports |= report
