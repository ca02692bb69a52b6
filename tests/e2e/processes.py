"""Looking at a server from outside: its processes, their memory, its shared memory."""

from __future__ import annotations

from pathlib import Path

import psutil

from fastserve.tools.launcher import TritonLauncher

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_PREFIX = "--backend-config=python,shm-region-prefix-name="
"""The server's argument that says how the names of its stubs' shared memory begin."""


def server_processes(server: TritonLauncher) -> list[psutil.Process]:
    """tritonserver and every stub."""
    parent = psutil.Process(server.pid)
    return [parent, *parent.children(recursive=True)]


def stub_process(server: TritonLauncher, model: str) -> psutil.Process:
    """The stub that runs ``model``."""
    found = [process for process in server_processes(server) if _is_stub_of(process, model)]
    assert len(found) == 1, f"{len(found)} stubs of {model}"
    return found[0]


def _is_stub_of(process: psutil.Process, model: str) -> bool:
    """The name of a stub's model instance is among its arguments."""
    command = process.cmdline()
    return bool(command) and "triton_python_backend_stub" in command[0] and f"{model}_0_0" in command


def resident_bytes(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def shared_memory_bytes(server: TritonLauncher) -> int:
    """Bytes that the server's files in /dev/shm really take, whichever of its stubs made them."""
    prefix = next(
        argument.removeprefix(SHARED_MEMORY_PREFIX)
        for argument in psutil.Process(server.pid).cmdline()
        if argument.startswith(SHARED_MEMORY_PREFIX)
    )
    return sum(file.stat().st_blocks * 512 for file in SHARED_MEMORY.glob(f"{prefix}*"))
