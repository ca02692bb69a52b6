"""Where Triton is on this machine, and what it needs to run with this interpreter.

The ``nvidia-pytriton`` wheel carries a whole ``tritonserver`` with one Python stub for each Python version; a system
installation (an official container) is used when ``FASTSERVE_TRITON`` names its root.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from fastserve.errors import ToolError

TRITON_VARIABLE = "FASTSERVE_TRITON"
INSTALL_COMMAND = "pip install 'triton-fastserve[serve]'"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB_NAME = "triton_python_backend_stub"


@dataclasses.dataclass(frozen=True, slots=True)
class TritonInstall:
    """A ``tritonserver`` and the files of its python backend that fit this interpreter."""

    server: Path
    python_backend_files: tuple[Path, ...]
    """The shared library, ``triton_python_backend_utils.py`` and the stub; copied into the backend directory."""
    library_directories: tuple[Path, ...]
    description: str


def find_triton(environment: Mapping[str, str] | None = None) -> TritonInstall:
    """The Triton to run: ``FASTSERVE_TRITON`` if set, else the one of nvidia-pytriton.

    Raises :class:`ToolError` saying what to install when there is none or when it has no stub for this Python.
    """
    root = (os.environ if environment is None else environment).get(TRITON_VARIABLE)
    return system_triton(Path(root).absolute()) if root else wheel_triton()


def system_triton(root: Path) -> TritonInstall:
    """A Triton laid out like the official container: ``bin/tritonserver``, ``lib/``, ``backends/python/``."""
    server, backend = root / "bin" / "tritonserver", root / "backends" / "python"
    if not server.is_file():
        raise ToolError(f"{TRITON_VARIABLE}={root}: no bin/tritonserver there; unset it to use the server of nvidia-pytriton")
    files = tuple(sorted(path for path in backend.glob("*") if path.is_file()))
    if not any(path.name == STUB_NAME for path in files):
        raise ToolError(
            f"{TRITON_VARIABLE}={root}: {backend} has no {STUB_NAME}; this Triton was built without the python backend"
        )
    return TritonInstall(server, files, _existing(root / "lib", *_python_library_directories()), f"tritonserver in {root}")


def wheel_triton() -> TritonInstall:
    """The Triton inside the nvidia-pytriton wheel of this environment."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ToolError(f"no Triton found: {INSTALL_COMMAND}, or set {TRITON_VARIABLE} to the root of an installed Triton")
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON_VERSION / STUB_NAME
    if not stub.is_file():
        known = sorted(path.name for path in stub.parent.parent.glob("*"))
        raise ToolError(f"nvidia-pytriton has no stub for Python {PYTHON_VERSION}, only for {', '.join(known)}; use one of these")
    backend = root / "backends" / "python"
    files = (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub)
    libraries = _existing(package.parent / "nvidia_pytriton.libs", *_python_library_directories())
    description = f"tritonserver of nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}"
    return TritonInstall(root / "bin" / "tritonserver", files, libraries, description)


def python_library() -> str | None:
    """This interpreter's shared library (the stub loads it), or None when only a static interpreter is installed."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if ".so" in name:
        for directory in _python_library_directories():
            if (directory / name).is_file():
                return str(directory / name)
    return ctypes.util.find_library(f"python{PYTHON_VERSION}")


def server_environment(install: TritonInstall, base: Mapping[str, str]) -> dict[str, str]:
    """The environment ``tritonserver`` and its stubs run in.

    The stub embeds the Python whose ``python3`` comes first on PATH, with the packages of its (virtual) environment; it
    does not read PYTHONPATH.
    """
    environment = dict(base)
    environment["PATH"] = _joined(str(Path(sys.executable).parent), base.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _joined(*map(str, install.library_directories), base.get("LD_LIBRARY_PATH"))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _joined(*entries: str | None) -> str:
    return os.pathsep.join(entry for entry in entries if entry)


def _existing(*directories: Path) -> tuple[Path, ...]:
    return tuple(directory for directory in directories if directory.is_dir())


def _python_library_directories() -> tuple[Path, ...]:
    configured = sysconfig.get_config_var("LIBDIR")
    own = Path(sys.base_prefix) / "lib"
    return tuple(dict.fromkeys((Path(configured), own) if configured else (own,)))
