"""The Makefile's own decisions, with a stand-in for Python: which .venv is kept, made or refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
FAKE_PYTHON = """#!/bin/sh
# Says it is version VERSION. A .venv it makes has a copy of itself; a file named no-pip beside it stands for a missing pip.
version=VERSION
case "$1 $2" in
"-V ") echo "Python 3.$version.1" ;;
"-c "*) test $version -ge 10 && test $version -le 12 ;;
"-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    if test -e interrupt; then touch "$3/bin/no-pip"; exit 1; fi ;;
"-m pip") case "$*" in *--version) test ! -e "$(dirname "$0")/no-pip" ;; *) echo "$*" >> installs ;; esac ;;
*) echo "$MODEL" > asked; shift 2; printf '%s\\n' "$@" >> asked ;;
esac
"""


class Clone:
    """A folder with the Makefile, sources with nothing in them, and the Pythons 3.9, 3.11 and 3.12."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(MAKEFILE, folder)
        self.kernel = folder / "python_backend/fastserve/worker/kernels/one.cpp"
        self.kernel.parent.mkdir(parents=True)
        for path in (self.kernel, folder / "pyproject.toml", folder / "constraints.txt"):
            path.write_text("")
        for version in (9, 11, 12):
            self.write_python(folder / f"python3.{version}", version)

    @staticmethod
    def write_python(path: Path, version: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_PYTHON.replace("VERSION", str(version)))
        path.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"]}
        return subprocess.run(["make", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def setup(self, python: str = "python3.11") -> subprocess.CompletedProcess[str]:
        return self.make("setup", f"PYTHON=./{python}")

    @property
    def installs(self) -> list[str]:
        """What pip was asked for so far."""
        log = self.folder / "installs"
        return log.read_text().splitlines() if log.exists() else []

    def version(self) -> str:
        return subprocess.run([self.folder / ".venv/bin/python", "-V"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_setup_makes_a_venv_once(clone: Clone) -> None:
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    assert clone.setup().returncode == 0
    assert len(clone.installs) == 1 and "-e .[dev]" in clone.installs[0]


def test_a_python_that_cannot_have_everything_is_refused_in_one_line_and_nothing_is_left(clone: Clone) -> None:
    done = clone.setup("python3.9")
    assert done.returncode != 0
    assert (
        "make: Python 3.10 to 3.12 is needed, ./python3.9 is Python 3.9.1; name one: make setup PYTHON=python3.11" in done.stderr
    )
    assert not (clone.folder / ".venv").exists() and not clone.installs


def test_a_venv_that_was_left_without_pip_is_made_anew(clone: Clone) -> None:
    clone.write_python(clone.folder / ".venv/bin/python", 11)
    (clone.folder / ".venv/bin/no-pip").touch()
    assert clone.setup().returncode == 0
    assert not (clone.folder / ".venv/bin/no-pip").exists()


def test_a_venv_that_cannot_be_made_says_which_package_is_missing_and_leaves_nothing(clone: Clone) -> None:
    (clone.folder / "interrupt").touch()
    done = clone.setup()
    assert done.returncode != 0 and "apt-get install python3-venv" in done.stderr
    assert not (clone.folder / ".venv").exists()


def test_another_python_that_is_asked_for_makes_the_venv_anew(clone: Clone) -> None:
    clone.setup()
    assert clone.setup("python3.12").returncode == 0
    assert clone.version() == "Python 3.12.1"
    assert len(clone.installs) == 2


def test_a_venv_of_a_python_that_does_not_fit_is_made_anew(clone: Clone) -> None:
    clone.write_python(clone.folder / ".venv/bin/python", 9)
    assert clone.setup().returncode == 0
    assert clone.version() == "Python 3.11.1"


def test_an_edited_kernel_rebuilds_the_library_only_and_without_the_network(clone: Clone) -> None:
    clone.setup()
    later = (clone.folder / ".venv/.kernels").stat().st_mtime + 10
    os.utime(clone.kernel, (later, later))
    assert clone.setup().returncode == 0
    assert clone.installs[1:] == ["-m pip install --disable-pip-version-check --no-deps --no-build-isolation -e ."]


def test_every_benchmark_has_a_target_and_make_lists_it(clone: Clone) -> None:
    text = MAKEFILE.read_text()
    scripts = {path.name for path in (MAKEFILE.parent / "benchmarks").glob("bench_*.py")}
    assert len(scripts) > 15 and {script for script in scripts if f"benchmarks/{script}" not in text} == set()
    listed = clone.make("help").stdout
    assert [name for name in re.findall(r"^(bench[\w-]*):", text, re.MULTILINE) if f"make {name} " not in listed] == []


def test_a_models_name_may_hold_any_sign(clone: Clone) -> None:
    clone.setup()
    name = """Anna's "fine tune" (2)"""
    done = clone.make("demo", f"MODEL={name}")
    assert done.returncode == 0, done.stderr
    assert (clone.folder / "asked").read_text().splitlines() == [name, "--model", name]


def test_the_tests_run_in_as_many_processes_as_are_asked_for_and_those_of_one_server_in_one(clone: Clone) -> None:
    clone.setup()
    (clone.folder / ".demo/packages").mkdir(parents=True)  # pip would
    done = clone.make("test", "WORKERS=3")
    assert done.returncode == 0, done.stderr
    asked = (clone.folder / "asked").read_text()
    assert "--numprocesses\n3\n--dist\nloadscope\n" in asked
