"""``fastserve evaluate --in-process``: Triton for the time of the evaluation, and what the manifest says."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastserve.errors import ToolError
from fastserve.tools import cli, evaluate
from fastserve.tools.encoder_client import EncoderRequest, Outputs
from fastserve.tools.evaluation import source_model
from fastserve.tools.launcher import LaunchOptions
from tests.doubles import make_manifest
from tests.encoder_client_double import FakeEncoderClient, labelled_tokens

SENTENCES = 10
Capture = pytest.CaptureFixture[str]


def everywhere(tag: str) -> Callable[[EncoderRequest], Outputs]:
    return lambda request: labelled_tokens(request.texts["text_input"], dict.fromkeys(request.texts["text_input"].split(), tag))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What happened to the launcher, in order."""
    events: list[object] = []

    class Launcher:
        grpc_url = "127.0.0.1:4711"

        def __init__(self, repository: Path, options: LaunchOptions) -> None:
            events.append((repository, options.model_control_mode, options.load_models))

        def __enter__(self) -> Launcher:
            return self

        def __exit__(self, *_: object) -> None:
            events.append("stopped")

    client = FakeEncoderClient(everywhere("B-X"), task="text-generation")  # the manifest's task counts

    def connect(url: str) -> FakeEncoderClient:
        events.append(url)
        return client.connect(url)

    monkeypatch.setattr(evaluate, "TritonLauncher", Launcher)
    monkeypatch.setattr(evaluate, "connect_encoder", connect)
    return events


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., Path]:
    def make(dtype: str = "fp32", version: str = "1", task: str = "token-classification") -> Path:
        manifest = make_manifest(task=task)
        folder = tmp_path / "repository" / "my-ner" / version
        folder.mkdir(parents=True)
        model = dataclasses.replace(manifest.model, dtype=dtype)
        (folder / "manifest.json").write_text(dataclasses.replace(manifest, model=model).to_json())
        return tmp_path / "repository"

    return make


@pytest.fixture
def conll(tmp_path: Path) -> str:
    (tmp_path / "test.conll").write_text("a\tB-X\n\n" * SENTENCES)
    return str(tmp_path / "test.conll")


def test_triton_serves_only_this_model_and_only_until_it_has_answered(
    started: list[object], repository: Callable[..., Path], conll: str, capsys: Capture
) -> None:
    folder = repository()
    assert cli.main(["evaluate", "my-ner", conll, "--in-process", "--model-repository", str(folder)]) == 0
    assert started == [(folder, "explicit", ("my-ner",)), "127.0.0.1:4711", "stopped"]
    assert "10 sentences" in capsys.readouterr().out


def test_a_bad_file_is_seen_before_triton_starts(started: list[object], repository: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bad.conll").write_text("a\n")
    assert (
        cli.main(["evaluate", "my-ner", str(tmp_path / "bad.conll"), "--in-process", "--model-repository", str(repository())])
        == 1
    )
    assert started == []


def test_the_newest_version_is_the_one_that_counts(repository: Callable[..., Path]) -> None:
    repository(version="2", task="question-answering")
    folder = repository(version="10")
    assert evaluate._version_folder(folder, "my-ner").name == "10"


@pytest.mark.parametrize(("dtype", "code"), [("int8", 0), ("fp32", 1)])
@pytest.mark.parametrize("in_process", [True, False])
def test_an_int8_model_may_differ_in_two_of_a_hundred_items(
    started: list[object],
    repository: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    code: int,
    in_process: bool,
) -> None:
    class Source:
        labels, notes = ("O", "B-X"), ()

        def answer(self, texts: dict[str, str], *_: object) -> Outputs:
            return everywhere("O" if texts["text_input"] == "odd" else "B-X")(EncoderRequest(texts))

    monkeypatch.setattr(source_model, "_loader", lambda: lambda directory, task, served, labels: Source())
    (tmp_path / "test.conll").write_text("odd\tB-X\n\n" + "a\tB-X\n\n" * 49)
    arguments = ["--task", "token-classification", "--model-repository", str(repository(dtype)), "--compare", "source"]
    given = [*arguments, "--in-process"] if in_process else arguments
    assert cli.main(["evaluate", "my-ner", str(tmp_path / "test.conll"), *given]) == code


def test_a_source_model_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastserve.export.source_predictions", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ToolError, match=r"with torch, which is not installed: pip install 'triton-fastserve\[export\]'"):
        source_model.load_source_model("anything", "token-classification", None)
