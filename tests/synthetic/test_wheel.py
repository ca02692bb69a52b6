"""What `make wheel` puts into the wheel; that it works without a compiler is shown by `make test-wheel`."""

from __future__ import annotations

import configparser
import ctypes
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "fastserve/worker/kernels/libfastserve_ops.so"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as users make it, but with the environment that runs this test, which stays as it is."""
    folder = tmp_path_factory.mktemp("dist")
    bin_folder = Path(sys.executable).parent
    ready = [argument for name in (".ready", ".kernels") for argument in ("-o", f"{bin_folder.parent}/{name}")]
    command = ["make", "wheel", f"DIST={folder}", f"VENV={bin_folder.parent}", "WANTED_VERSION=", "VENV_VERSION=", *ready]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_the_wheel_is_for_any_python_3_on_linux_from_glibc_2_35_on(wheel: Path) -> None:
    python, abi, platforms = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    oldest = min(tuple(map(int, platform.split("_")[1:3])) for platform in platforms.split("."))
    assert platforms.startswith("manylinux_") and oldest <= (2, 35)


def test_the_wheel_has_the_library_and_every_module_but_no_sources_of_the_library(wheel: Path) -> None:
    packed = names(wheel)
    assert {name for name in packed if not name.endswith(".py") and ".dist-info/" not in name} == {LIBRARY, "fastserve/py.typed"}
    package = ROOT / "python_backend" / "fastserve"
    modules = [*package.rglob("*.py"), *(package / "export").resolve().rglob("*.py")]
    relative = {
        Path("fastserve/export", path.relative_to(ROOT / "export"))
        if path.is_relative_to(ROOT / "export")
        else path.relative_to(package.parent)
        for path in modules
    }
    assert {Path(name) for name in packed if name.endswith(".py")} == relative | {Path("fastserve/triton/_backend/model.py")}
    assert "fastserve/export/text_generation.py" in packed  # what lies behind the link


def test_the_library_in_the_wheel_loads_and_chooses_its_code_at_run_time(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(LIBRARY, tmp_path)
    for function_name in ("fastserve_isa", "fastserve_quantized_isa"):
        function = ctypes.CDLL(str(tmp_path / LIBRARY))[function_name]
        function.restype = ctypes.c_char_p
        assert function()


def test_the_wheel_installs_the_command_and_names_every_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(points).decode())
        said = archive.read(metadata).decode()
    assert dict(parser["console_scripts"]) == {"fastserve": "fastserve.tools.cli:main"}
    extras = {line.split(": ")[1] for line in said.splitlines() if line.startswith("Provides-Extra: ")}
    assert extras >= {"cpu", "cuda", "serve", "client", "export"}
