"""Fixtures that tests of several layers share, and how the tests are divided among the processes of ``make test``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

DecoderExports = Callable[[str], Any]
_LINE = "line below the test run"
"""Property of a test's report: what reaches the process that writes the summary, wherever the test ran."""

hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")  # a busy machine is no failure

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's, here and in what is started from here: each process has one core


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--schedules", type=int, default=50, help="random schedules of the scheduler's property test (50)")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests, and the servers they start, leave the user's cache folder alone."""
    os.environ["FASTSERVE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def num_schedules(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--schedules"))


@pytest.fixture
def report_events(request: pytest.FixtureRequest) -> Callable[[str, int, Counter[str]], None]:
    """Called with a policy, the number of schedules and what they saw, puts a line below the test run."""

    def report(policy: str, count: int, seen: Counter[str]) -> None:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(seen.items()))
        request.node.user_properties.append((_LINE, f"{count} random schedules under {policy}: {kinds}"))

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == _LINE and report.when == "call":
                terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged goes from process to process as UTF-8, whatever characters it tried."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who runs what, when there are several processes."""
    from tests.scheduling import GroupScheduling  # xdist is here, or nobody would ask

    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def decoder_sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Hugging Face folder of a family of ``decoder_families.FAMILIES``, made when first asked for."""
    from tests.synthetic.decoder_families import FAMILIES  # torch and transformers: seconds

    folder = tmp_path_factory.mktemp("decoder_sources")

    def get(family: str) -> Path:
        path = folder / family
        return path if path.exists() else FAMILIES[family].save(path)

    return get


@pytest.fixture(scope="session")
def decoder_exports(decoder_sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> DecoderExports:
    """The ExportResult of a family, in one model repository, made when first asked for: an export takes seconds."""
    from fastserve.export.options import ExportOptions
    from fastserve.export.text_generation import export_model
    from tests.synthetic.decoder_families import FAMILIES

    repository = tmp_path_factory.mktemp("decoder_repository")
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            options = ExportOptions(repository, name=family, max_model_len=FAMILIES[family].max_model_len)
            made[family] = export_model(str(decoder_sources(family)), options)
        return made[family]

    return get
