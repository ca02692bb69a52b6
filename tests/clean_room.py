"""``make test-wheel``: the wheel in an environment that has nothing but it: no compiler, no torch, no source tree.

    python -m tests.clean_room WHEEL [PIP FLAG ...]

A tiny model is exported here; the wheel's own ``fastserve serve`` then serves it with a real Triton, is asked over both
protocols, and is stopped. Needs a package index, so it is no part of ``make test``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from tests.synthetic.tiny_models import llama_config, save_model

EXTRAS = "cpu,client,serve"
MODEL = "tiny-llama"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "ninja", "cmake")
SHELLS = ("bash", "sh")
_ASK_S = 60.0


class CleanRoom:
    """A new virtual environment in ``folder``; commands run there, away from the source tree. Beside it PATH has only the shell
    that Triton starts its stubs with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        shell = folder / "shell"
        shell.mkdir()
        for name in SHELLS:
            (shell / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        self.environment = {"PATH": f"{self.bin}:{shell}", "HOME": str(folder), "FASTSERVE_CACHE": str(folder / "cache")}
        found = [name for name in COMPILERS if shutil.which(name, path=self.environment["PATH"])]
        assert not found, f"compilers in the clean room: {found}"

    def install(self, wheel: Path, pip_flags: list[str]) -> None:
        """With the network settings of this process: pip may need a proxy or an index."""
        what = ["--only-binary", ":all:", "-c", str(CONSTRAINTS), *pip_flags, f"{wheel}[{EXTRAS}]"]
        command = [str(self.bin / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *what]
        subprocess.run(command, cwd=self.folder, env=os.environ | {"PATH": str(self.bin)}, check=True)

    def run(self, *command: str) -> str:
        """What the command of the environment wrote to stdout; it must succeed."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_ASK_S,
            check=True,
        )
        return done.stdout

    def serve(self, repository: Path) -> subprocess.Popen[str]:
        """``fastserve serve`` on free ports."""
        ports = [argument for name in ("http", "grpc", "metrics") for argument in (f"--{name}-port", "0")]
        command = [str(self.bin / "fastserve"), "serve", "--model-repository", str(repository), *ports]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True)


def addresses(server: subprocess.Popen[str]) -> tuple[str, str]:
    """The HTTP and the gRPC address that ``fastserve serve`` prints when everything is ready."""
    assert server.stdout is not None
    said: dict[str, str] = {}
    while "metrics" not in said:
        line = server.stdout.readline()
        assert line, "the server ended before it was ready; its reason is above"
        words = line.split()
        if len(words) == 2:
            said[words[0]] = words[1]
    return said["HTTP"], said["gRPC"]


def check_installation(room: CleanRoom) -> None:
    """The package comes from the wheel, its library loads, and what only exports need is not there."""
    code = (
        "import importlib.util, json, fastserve; from fastserve.worker import kernels; "
        "without_torch = importlib.util.find_spec('torch') is None; "
        "print(json.dumps([fastserve.__file__, kernels.isa(), kernels.quantized_isa(), without_torch]))"
    )
    file, isa, quantized_isa, without_torch = json.loads(room.run("python", "-c", code))
    assert Path(file).is_relative_to(room.folder), f"imported from {file}"
    assert without_torch, "torch came along"
    print(f"installed; attention kernels {isa}, int8 kernels {quantized_isa}", flush=True)
    checks = {check["name"]: check for check in json.loads(room.run("fastserve", "doctor", "--json"))}
    missing = [name for name, check in checks.items() if check["required"] and not check["ok"]]
    assert not missing, f"the doctor misses {missing}"


def check_serving(room: CleanRoom, repository: Path) -> None:
    """One greedy answer over gRPC and the same over HTTP; then Ctrl-C, exit code 0."""
    with room.serve(repository) as server:
        try:
            urls = addresses(server)
            asked = ("infer", MODEL, "hello there", "--temperature", "0", "--max-tokens", "8", "--json")
            answers = [
                json.loads(room.run("fastserve", *asked, "--protocol", protocol, "--url", url))["text"]
                for protocol, url in zip(("http", "grpc"), urls, strict=True)
            ]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=_ASK_S)
    assert len(set(answers)) == 1 and answers[0], f"the answers are {answers}"
    assert server.returncode == 0, f"serve ended with {server.returncode}"
    print(f"served by Triton and stopped; the answer was {answers[0]!r}", flush=True)


def main(arguments: list[str]) -> int:
    wheel, pip_flags = Path(arguments[0]).resolve(), arguments[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it, and the server would inherit that
    with tempfile.TemporaryDirectory(prefix="fastserve-clean-room-") as temporary:
        folder = Path(temporary)
        repository = folder / "models"
        export_model(str(save_model(llama_config(), folder / "source")), ExportOptions(output=repository, name=MODEL))
        room = CleanRoom(folder / "room")
        room.install(wheel, pip_flags)
        check_installation(room)
        check_serving(room, repository)
    print(f"{wheel.name} works without a compiler")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
