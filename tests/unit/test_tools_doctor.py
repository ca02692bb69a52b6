"""The doctor: what is missing is named with the command that mends it, and only what serving needs fails it."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from fastserve.errors import ToolError
from fastserve.tools import cli, doctor, doctor_checks, triton_install
from fastserve.tools.doctor_checks import Check

GOOD = Check("Python", True, True, "3.11")
OPTIONAL = Check("export", False, False, "torch missing", "pip install 'triton-fastserve[export]'")
BROKEN = Check("Triton", False, True, "no Triton found", "pip install 'triton-fastserve[serve]'")


@pytest.mark.parametrize(("checks", "code"), [([GOOD], 0), ([GOOD, OPTIONAL], 0), ([GOOD, OPTIONAL, BROKEN], 1)])
def test_only_what_serving_needs_makes_the_exit_code_one(
    checks: list[Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda ports: checks)
    assert cli.main(["doctor"]) == code
    out = capsys.readouterr().out
    for check in checks:
        assert check.name in out and (check.ok or f"{check.name}: {check.mend}\n" in out)
    assert cli.main(["doctor", "--json"]) == code
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [check.name for check in checks]


def test_every_check_can_be_made_here_and_has_a_way_to_mend_it() -> None:
    checks = doctor_checks.run_checks((1, 65535))
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.ok or check.mend for check in checks)


def test_a_package_that_is_not_installed_is_named() -> None:
    check = doctor_checks.check_packages("x", ("numpy", "no-such-distribution"), "pip install it")
    assert not check.ok and "no-such-distribution missing" in check.found and "numpy 1" in check.found


def test_a_missing_triton_is_a_line_of_the_table_not_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> triton_install.TritonInstall:
        raise ToolError("no Triton found")

    monkeypatch.setattr(triton_install, "find_triton", fail)
    check = doctor_checks.check_triton()
    assert (check.ok, check.required, check.found) == (False, True, "no Triton found")
    assert check.mend == triton_install.INSTALL_COMMAND


@pytest.mark.parametrize(("version", "ok"), [((3, 9, 9), False), ((3, 10, 0), True), ((3, 12, 9), True), ((3, 13, 0), False)])
def test_only_pythons_that_can_have_triton_are_fine(
    version: tuple[int, int, int], ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor_checks.check_python().ok == ok


def test_a_port_that_cannot_exist_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--http-port", "99999"])
    assert ended.value.code == 2


def test_a_port_in_use_is_only_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check = doctor_checks.check_port(taken.getsockname()[1])
    assert (check.ok, check.required, check.found) == (False, False, "in use")


def test_a_machine_without_shared_memory_cannot_serve(tmp_path: Path) -> None:
    check = doctor_checks.check_shared_memory(tmp_path / "missing")
    assert (check.ok, check.required) == (False, True)
