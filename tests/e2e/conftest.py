"""Fixtures that start a real Triton on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.served_encoders import build_encoder_repository, save_encoders
from tests.e2e.served_models import build_repository, save_sources

TOY_MODEL = Path(__file__).parent / "toy_model.py"
TOY_OPTIONS = LaunchOptions(ready_timeout_s=300.0)

MakeLauncher = Callable[..., TritonLauncher]


def add_python_model(repository: Path, name: str, source: str) -> None:
    """A model of Triton's own python backend, without FastServe."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "python"\n')
    (version / "model.py").write_text(source)


@pytest.fixture
def toy_repository(tmp_path: Path) -> Path:
    """A repository with one model, ``toy`` (toy_model.py)."""
    repository = tmp_path / "models"
    add_python_model(repository, "toy", TOY_MODEL.read_text())
    return repository


@pytest.fixture
def toy_launcher(toy_repository: Path) -> Iterator[MakeLauncher]:
    """Makes launchers (not started) of the toy repository from options; all are stopped in the end."""
    made: list[TritonLauncher] = []

    def make(**options: object) -> TritonLauncher:
        made.append(TritonLauncher(toy_repository, dataclasses.replace(TOY_OPTIONS, **options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for launcher in made:
        launcher.stop()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny random models that are served, by name."""
    return save_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> Iterator[TritonLauncher]:
    """A real Triton that serves every model of ``served_models.SERVED``."""
    repository = build_repository(sources, tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("repository"))
    with TritonLauncher(repository, LaunchOptions(ready_timeout_s=300.0)) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def encoder_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny random encoders that are served, by the name they are served under."""
    return save_encoders(tmp_path_factory.mktemp("encoder_sources"))


@pytest.fixture(scope="session")
def encoder_repository(tmp_path_factory: pytest.TempPathFactory, encoder_sources: dict[str, Path]) -> Path:
    """A model repository with every encoder of ``served_encoders``; tests copy from it and change nothing."""
    return build_encoder_repository(encoder_sources, tmp_path_factory.mktemp("encoder_repository"))


@pytest.fixture(scope="session")
def encoder_server(encoder_repository: Path) -> Iterator[TritonLauncher]:
    """A real Triton that serves ``encoder_repository``."""
    with TritonLauncher(encoder_repository, LaunchOptions(ready_timeout_s=300.0)) as launcher:
        yield launcher
