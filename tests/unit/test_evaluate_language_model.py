"""``fastserve evaluate`` of a text-generation model from the command line to the exit code, with models made here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve.errors import ToolError
from fastserve.export import perplexity
from fastserve.export.config_pbtxt import render_config_pbtxt
from fastserve.manifest import CPU
from fastserve.tools import cli
from fastserve.tools.evaluation import language_model
from tests.doubles import make_manifest

Capture = pytest.CaptureFixture[str]
WINDOW = 8
TEXT = "abcdefghijklmnopqrst"  # 20 tokens: windows of 8, 8, 8, 8 that score 7, 4, 4, 4


class Model:
    """Every token has the same probability; a token is a character. ``checked``: what the source was asked to check."""

    window_length = WINDOW

    def __init__(self, probability: float) -> None:
        self._probability = probability
        self.checked: list[tuple[str, int, int]] = []

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def check(self, text: str, token_ids: Sequence[int], longest: int) -> None:
        self.checked.append((text, len(token_ids), longest))

    def score(self, window: perplexity.TextWindow) -> Any:
        return np.full(window.num_scored, np.log(self._probability))


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a model whose perplexity is 4, on a text."""
    folder = tmp_path / "repository" / "llm" / "1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(make_manifest(task="text-generation").to_json())
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setattr(perplexity, "ServedLanguageModel", lambda directory, manifest, kv_cache_dtype: Model(0.25))
    return ["evaluate", "llm", str(tmp_path / "text.txt"), "--in-process", "--model-repository", str(tmp_path / "repository")]


@pytest.mark.parametrize(("dtype", "cache"), [("fp32", "fp32"), ("int8", "int8")])
def test_the_cache_is_the_one_that_the_models_configuration_asks_for(tmp_path: Path, dtype: str, cache: str) -> None:
    assert language_model.served_cache_dtype(tmp_path / "1") == "fp32", "without a configuration"
    (tmp_path / "config.pbtxt").write_text(render_config_pbtxt(CPU, dtype))
    assert language_model.served_cache_dtype(tmp_path / "1") == cache


def test_a_configuration_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("no configuration")
    with pytest.raises(ToolError, match=r"config\.pbtxt: "):
        language_model.served_cache_dtype(tmp_path / "1")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(probability: float) -> Model:
        model = Model(probability)
        monkeypatch.setattr(language_model, "_load_source", lambda directory: model)
        return model

    return install


def test_perplexity_and_how_it_was_measured_are_shown_and_written(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert cli.main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "19 tokens scored in 4 windows of up to 8 that overlap by half" in out
    assert ["served", "4"] in [line.split() for line in out.splitlines()]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written.pop("seconds") >= 0
    assert written == {
        "model": "llm",
        "dataset": str(tmp_path / "text.txt"),
        "task": "text-generation",
        "windows": 4,
        "window_length": 8,
        "scored_tokens": 19,
        "perplexity": {"served": pytest.approx(4)},
        "comparison": None,
    }


def test_a_limit_counts_windows(arguments: list[str], capsys: Capture) -> None:
    assert cli.main([*arguments, "--limit", "2"]) == 0
    assert "11 tokens scored in 2 windows" in capsys.readouterr().out


def test_a_source_with_the_same_perplexity_is_the_source(arguments: list[str], source: Any, capsys: Capture) -> None:
    model = source(0.25)
    assert cli.main([*arguments, "--compare", "tuned"]) == 0
    out = capsys.readouterr().out
    assert ["source", "4"] in [line.split() for line in out.splitlines()]
    assert "Relative difference 0 (tolerance 0.0001)" in out and "The served model is the source model" in out
    assert model.checked == [(TEXT, len(TEXT), WINDOW)]


def test_a_source_with_another_perplexity_ends_with_exit_code_one(
    arguments: list[str], source: Any, capsys: Capture, tmp_path: Path
) -> None:
    source(0.2)  # its perplexity is 5
    assert cli.main([*arguments, "--compare", "tuned", "--json", str(tmp_path / "out.json")]) == 1
    out = capsys.readouterr().out
    assert "Relative difference 0.2 (tolerance 0.0001)" in out and "NOT the source model" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["perplexity"] == {"source": pytest.approx(5), "served": pytest.approx(4)}
    assert written["comparison"] == {
        "relative_difference": pytest.approx(0.2),
        "worst_token_difference": pytest.approx(np.log(1.25)),
        "tolerance": 1e-4,
        "within_tolerance": False,
    }
    assert cli.main([*arguments, "--compare", "tuned", "--tolerance", "0.21"]) == 0


def test_what_is_no_number_is_not_the_source(arguments: list[str], source: Any) -> None:
    source(float("nan"))
    assert cli.main([*arguments, "--compare", "tuned", "--tolerance", "1"]) == 1


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--parameter", "top_k=1"], "--parameter"),
        (["--compare", "tuned", "--base", "raw", "--score-tolerance", "0"], "--base, --score-tolerance"),
        (["--columns", "1,2", "--no-header", "--labels", "a,b"], "--columns, --no-header, --labels"),
    ],
)
def test_options_of_other_tasks_are_refused_by_name(arguments: list[str], given: list[str], names: str, capsys: Capture) -> None:
    assert cli.main([*arguments, *given]) == 1
    assert capsys.readouterr().err == (
        f"fastserve: {names}: of no use to a text-generation model, whose perplexity on a plain text is measured\n"
    )


@pytest.mark.parametrize(("text", "message"), [("x", "the text has 1 tokens"), (" \n", "the file is empty")])
def test_a_text_with_nothing_to_score_is_one_line(arguments: list[str], text: str, message: str, capsys: Capture) -> None:
    Path(arguments[2]).write_text(text)
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_source_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastserve.export.source_perplexity", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ToolError, match=r"with torch, which is not installed: pip install 'triton-fastserve\[export\]'"):
        language_model._load_source("anything")


def test_a_served_model_without_onnxruntime_says_what_to_install(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in ("export.perplexity", "worker.model_runner", "worker.session"):
        monkeypatch.delitem(sys.modules, f"fastserve.{name}", raising=False)
    monkeypatch.delattr("fastserve.export.perplexity")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(arguments) == 1
    assert "onnxruntime, which is not installed: pip install 'triton-fastserve[cpu]'" in capsys.readouterr().err
