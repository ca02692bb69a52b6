"""Puts NVIDIA's perf_analyzer into a folder of its own, without root: the binary of tritonclient's wheel and two libraries.

The wheel of tritonclient 2.50.0 is the last whose binary runs with glibc 2.35. It needs libb64 (Debian and Ubuntu:
libb64-0d, taken from the distribution's archive unless it is installed) and CUDA's runtime library, but no GPU.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = ("tritonclient==2.50.0", "nvidia-cuda-runtime-cu12==12.9.79")
DEBIAN_PACKAGE = "libb64-0d"


@dataclasses.dataclass(frozen=True)
class PerfAnalyzer:
    """``program`` runs with ``libraries`` on LD_LIBRARY_PATH."""

    program: Path
    libraries: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        known = [*map(str, self.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(known)}


def install(folder: Path) -> PerfAnalyzer:
    """Fetch what is not in ``folder`` yet. Exits with one line that says what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.rglob("perf_analyzer")):
        _fetch_wheels(folder)
    if ctypes.util.find_library("b64") is None and not list(folder.rglob("libb64.so*")):
        _fetch_libb64(folder)
    (program,) = folder.rglob("perf_analyzer")
    program.chmod(0o755)
    found = PerfAnalyzer(
        program.resolve(), tuple(sorted({library.parent.resolve() for library in folder.rglob("lib*.so*") if library.is_file()}))
    )
    done = subprocess.run([found.program, "--version"], env=found.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0 and "Perf Analyzer" not in done.stdout:
        sys.exit(f"{found.program} does not run here: {done.stderr.strip()}")
    return found


def _fetch_wheels(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary", ":all:", "--dest", str(folder), *WHEELS], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if name.endswith("/perf_analyzer") or "/libcudart.so" in name]
            archive.extractall(folder, wanted)
        wheel.unlink()


def _fetch_libb64(folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        sys.exit("perf_analyzer needs libb64 (libb64.so.0d): install it with this system's package manager, then try again")
    done = subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"apt-get download {DEBIAN_PACKAGE}: {done.stderr.strip()} (try `apt-get update` first)")
    for package in folder.glob(f"{DEBIAN_PACKAGE}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "libb64")], check=True)
        package.unlink()
