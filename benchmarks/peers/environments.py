"""An environment for each engine, made once below the work folder, with pinned versions."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from rows import HERE, Engine

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""Its source distribution carries the sources of llama.cpp, server included."""
UNWANTED = {"openvino": ("torchvision",), "vllm": ("torchvision", "torchaudio", "torchcodec")}
"""What pip installs unasked and is built for another torch; nothing here needs it."""
_BUILD_OPTIONS = ("LLAMA_OPENSSL=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "BUILD_SHARED_LIBS=OFF")


def prepare(engine: Engine, work: Path) -> tuple[Path, dict[str, str]]:
    """The Python to run the engine's script with, and what to add to its environment. Made when it is not there.

    Raises subprocess.CalledProcessError when it cannot be installed or built; its ``stderr`` says why.
    """
    if engine.environment is None:
        return Path(sys.executable), {}
    folder = work / "environments" / engine.environment
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", "-r", HERE / "requirements" / f"{engine.environment}.txt")
        if engine.environment in UNWANTED:
            _run(python, "-m", "pip", "uninstall", "-y", *UNWANTED[engine.environment])
        ready.touch()
    if engine.environment == "llama_cpp":
        binaries = _llama_cpp(work / "llama.cpp")
        return python, {"LLAMA_SERVER": str(binaries / "llama-server"), "LLAMA_QUANTIZE": str(binaries / "llama-quantize")}
    return python, {}


def _llama_cpp(folder: Path) -> Path:
    """The folder of its programs, built for this machine."""
    build = folder / "build"
    if not (build / ".ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", folder, LLAMA_CPP)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (sources,) = folder.glob("*/vendor/llama.cpp")
        options = [f"-D{option}" for option in (*_BUILD_OPTIONS, "CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON")]
        _run("cmake", "-S", sources, "-B", build, "-G", "Ninja", *options)
        _run("cmake", "--build", build, "--target", "llama-server", "llama-quantize")
        (build / ".ready").touch()
    return build / "bin"


def _run(*command: str | Path) -> None:
    """With our environment's cmake and ninja."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
