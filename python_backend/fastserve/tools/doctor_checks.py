"""The single checks behind ``fastserve doctor``. Each looks at one thing and never raises."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastserve.errors import ToolError
from fastserve.tools import ports, triton_install

_GB = 1 << 30
MIN_SHARED_MEMORY = 256 << 20
"""Each model instance and its auto-complete run take a few MB; Docker's default of 64 MB is too little for many requests."""
_MIN_FREE_MEMORY = 1 * _GB


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. ``mend``: the command or step that makes ``ok`` true; ``required``: without it no serving."""

    name: str
    ok: bool
    required: bool
    found: str
    mend: str = ""


def run_checks(server_ports: Sequence[int]) -> list[Check]:
    """All checks, in the order a person would mend them."""
    return [
        check_python(),
        check_packages("runtime", ("numpy", "tokenizers", "jinja2"), "pip install triton-fastserve", required=True),
        check_onnxruntime(),
        check_op_library(),
        check_triton(),
        check_python_library(),
        check_shell(),
        check_shared_memory(),
        check_free_memory(),
        check_cores(),
        *(check_port(port) for port in server_ports),
        check_packages("client", ("tritonclient", "grpcio", "httpx"), "pip install 'triton-fastserve[client]'"),
        check_packages("export", ("torch", "transformers", "onnx", "onnxscript"), "pip install 'triton-fastserve[export]'"),
    ]


def check_python() -> Check:
    """The extra "serve" can be installed with these: nvidia-pytriton needs numpy 1, which ends at Python 3.12."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "Python", (3, 10) <= sys.version_info[:2] <= (3, 12), True, version, "use Python 3.10 to 3.12 (tested with 3.11)"
    )


def check_packages(name: str, distributions: Sequence[str], mend: str, *, required: bool = False) -> Check:
    """Whether all of them are installed, without importing any."""
    versions = {distribution: _version(distribution) for distribution in distributions}
    found = ", ".join(f"{distribution} {version or 'missing'}" for distribution, version in versions.items())
    return Check(name, None not in versions.values(), required, found, mend)


def check_onnxruntime() -> Check:
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        if version := _version(distribution):
            return Check("ONNX Runtime", True, True, f"{distribution} {version}")
    return Check("ONNX Runtime", False, True, "missing", "pip install 'triton-fastserve[cpu]' (or [cuda])")


def check_op_library() -> Check:
    from fastserve.worker import kernels

    mend = "apt-get install g++, then pip install --force-reinstall --no-deps triton-fastserve (in a clone: make setup)"
    return _check("kernels", lambda: f"attention {kernels.isa()}, int8 {kernels.quantized_isa()}, {kernels.library_path()}", mend)


def check_triton() -> Check:
    """Triton and its stub for this Python."""
    return _check("Triton", lambda: triton_install.find_triton().description, triton_install.INSTALL_COMMAND)


def check_python_library() -> Check:
    """Triton's stub embeds Python, so a purely static interpreter is not enough."""
    name = f"libpython{triton_install.PYTHON_VERSION}"
    library = triton_install.python_library()
    mend = f"apt-get install {name} (or use a Python that was built with --enable-shared)"
    return Check("Python library", library is not None, True, library or f"no {name}.so", mend)


def check_shell() -> Check:
    """Triton starts its stubs with bash, and waits for ever where there is none."""
    found = shutil.which("bash")
    return Check("bash", found is not None, True, found or "not on PATH", "apt-get install bash (Alpine: apk add bash)")


def check_shared_memory(path: Path = Path("/dev/shm")) -> Check:
    free = shutil.disk_usage(path).free if path.is_dir() else 0
    mend = "mount -o remount,size=1g /dev/shm (in Docker: --shm-size=1g)"
    return Check("/dev/shm", free >= MIN_SHARED_MEMORY, True, f"{free / _GB:.1f} GB free", mend)


def check_free_memory() -> Check:
    free = available_memory()
    mend = "stop other programs; a model needs its size plus its KV pool (kv_cache_bytes in config.pbtxt)"
    return Check("free memory", free >= _MIN_FREE_MEMORY, False, f"{free / _GB:.1f} GB", mend)


def check_cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    return Check("cores", cores >= 2, False, str(cores), "give this machine or container at least 2 cores")


def check_port(port: int) -> Check:
    name = f"port {port}"
    mend = f"stop what listens on {port}, or choose others: fastserve serve --http-port 0 --grpc-port 0 --metrics-port 0"
    try:
        free = ports.is_free("127.0.0.1", port)
    except ToolError as error:
        return Check(name, False, False, str(error), mend)
    return Check(name, free, False, "free" if free else "in use", mend)


def _check(name: str, look: Callable[[], str], mend: str) -> Check:
    """A required check that either describes what it found or raises what is wrong."""
    try:
        return Check(name, True, True, look())
    except (ToolError, OSError, AttributeError) as error:
        return Check(name, False, True, str(error), mend)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_memory() -> int:
    """Bytes the kernel says programs can still get."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
