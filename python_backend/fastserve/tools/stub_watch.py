"""Notices that a model's process has died: Triton does not, it lets its requests wait for ever and stays healthy.

Triton collects a stub it has ended itself at once: after auto-complete, when a model is unloaded in the modes "poll" and
"explicit", and soon one that died while its model was loaded. A stub that stays uncollected (a zombie) has therefore died
on its own, in every mode.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

_COMMAND = "triton_python_b"
"""What the kernel keeps of the stub's name."""
_INSTANCE_ARGUMENT = 8
_GRACE_S = 5.0
"""How long Triton may need to collect a stub that it ended, or to notice one that died while loading (about 2 s)."""


class StubWatch:
    """Over the stubs of the ``tritonserver`` with process id ``server``. ``clock``: seconds; ``proc``: the process table."""

    def __init__(self, server: int, clock: Callable[[], float] = time.monotonic, proc: Path = Path("/proc")) -> None:
        self._server = server
        self._clock = clock
        self._proc = proc
        self._instances: dict[str, str] = {}
        self._ended: dict[str, float] = {}

    def look(self) -> str | None:
        """Call now and then: which model instance's process has died and how, or None."""
        stubs = self._stubs()
        self._instances = {pid: self._instances.get(pid) or self._instance(pid) for pid in stubs}
        self._ended = {pid: self._ended.get(pid, self._clock()) for pid, fields in stubs.items() if fields[0] == "Z"}
        for pid, since in self._ended.items():
            if self._clock() - since >= _GRACE_S:
                name = self._instances[pid]
                return f"the process of model instance {name or '(unknown)'} died ({_how(int(stubs[pid][-1]))})"
        return None

    def _stubs(self) -> dict[str, list[str]]:
        """By process id, the fields of /proc/PID/stat behind the name: state, parent, ..., exit status."""
        stubs = {}
        for process in self._proc.iterdir():
            if process.name.isdecimal():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    before, _, after = (process / "stat").read_text(errors="replace").rpartition(")")
                    fields = after.split()
                    if fields[1] == str(self._server) and before.endswith(f"({_COMMAND}"):
                        stubs[process.name] = fields
        return stubs

    def _instance(self, pid: str) -> str:
        """Its instance's name, e.g. "llama_0_0"; "" once it is dead."""
        with contextlib.suppress(OSError, IndexError):
            return (self._proc / pid / "cmdline").read_text(errors="replace").split("\0")[_INSTANCE_ARGUMENT]
        return ""


def _how(status: int) -> str:
    """Of a wait status."""
    if not os.WIFSIGNALED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    name = f"signal {number}"
    with contextlib.suppress(ValueError):
        name = f"signal {signal.Signals(number).name}"
    return f"{name}; out of memory?" if number == signal.SIGKILL else name
