"""Perplexity of a really exported model: the served graph against torch, token by token, and a damaged one against both."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastserve.errors import ManifestError, ToolError, UnsupportedModel
from fastserve.export import perplexity
from fastserve.export.options import ExportOptions
from fastserve.export.perplexity import ServedLanguageModel, cut_text
from fastserve.export.source_perplexity import load_language_model
from fastserve.export.text_generation import export_model
from fastserve.manifest import ModelManifest
from fastserve.tools import cli
from tests.synthetic.tiny_encoders import save_encoder
from tests.synthetic.tiny_models import llama_config, save_model

CONTEXT = 64
TEXT = "The other thing on the hill, \u6771\u4eac and then in there: an inner ring.\r\n" * 4  # five windows
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama_config(max_position_embeddings=CONTEXT), tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def repository(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    export_model(str(source), ExportOptions(folder, name="llama"))
    return folder


@pytest.fixture
def served(repository: Path) -> ServedLanguageModel:
    return ServedLanguageModel(repository / "llama" / "1", ModelManifest.load(repository / "llama" / "1"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    return tmp_path / "text.txt"


def brute_force(source: Path) -> list[float]:
    """Log-probability of every token of the text but the first, each by a run of its own over its context alone.

    The context of token i: from the begin of the first window that holds it; windows begin every half context.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(source)(TEXT, verbose=False)["input_ids"]
    assert len(tokens) > 2 * CONTEXT
    found = []
    with torch.inference_mode():
        for i in range(1, len(tokens)):
            begin = next(begin for begin in range(0, len(tokens), CONTEXT // 2) if i < begin + CONTEXT)
            logits = model(input_ids=torch.tensor([tokens[begin:i]])).logits[0, -1].double()
            found.append(float(logits.log_softmax(-1)[tokens[i]]))
    return found


@pytest.mark.parametrize("chunk", [1, 7, 32, 256])
def test_the_served_graph_scores_every_token_as_torch_does_however_it_is_chunked(
    served: ServedLanguageModel, source: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(perplexity, "_CHUNK", chunk)
    windows = cut_text(served.encode(TEXT), served.window_length)
    assert len(windows) > 3
    scores = np.concatenate([served.score(window) for window in windows])
    expected = np.array(brute_force(source))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert perplexity.perplexity(scores) == pytest.approx(float(np.exp(-expected.mean())), rel=1e-5)


def test_the_source_scores_the_same_windows(served: ServedLanguageModel, source: Path) -> None:
    model = load_language_model(str(source))
    token_ids = served.encode(TEXT)
    model.check(TEXT, token_ids, served.window_length)
    scores = np.concatenate([model.score(window) for window in cut_text(token_ids, served.window_length)])
    np.testing.assert_allclose(scores, brute_force(source), atol=1e-4)


def test_a_window_is_scored_the_same_whatever_was_run_before_it(served: ServedLanguageModel) -> None:
    first, second, *_ = cut_text(served.encode(TEXT), served.window_length)
    alone = served.score(second)
    served.score(first)
    assert np.array_equal(served.score(second), alone)


def evaluate(repository: Path, text: Path, *arguments: str) -> int:
    return cli.main(["evaluate", "llama", str(text), "--in-process", "--model-repository", str(repository), *arguments])


def test_an_exported_model_has_the_perplexity_of_its_source(
    repository: Path, source: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert evaluate(repository, text, "--compare", str(source), "--json", str(tmp_path / "out.json")) == 0
    assert "The served model is the source model" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    expected = float(np.exp(-np.mean(brute_force(source))))
    assert written["perplexity"] == {name: pytest.approx(expected, rel=1e-4) for name in ("source", "served")}
    assert written["comparison"]["relative_difference"] < 1e-5
    assert written["scored_tokens"] == len(brute_force(source))


def test_a_damaged_copy_of_the_graph_is_not_the_source(
    repository: Path, source: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(repository, copy)
    weights = np.memmap(copy / "llama" / "1" / "model.onnx.data", np.float32, "r+")
    weights[: len(weights) // 2] *= np.float32(1.01)
    weights.flush()
    assert evaluate(copy, text, "--compare", str(source)) == 1
    assert "The served model is NOT the source model" in capsys.readouterr().out


def test_a_source_that_reads_the_text_differently_is_refused(served: ServedLanguageModel, source: Path) -> None:
    token_ids = served.encode(TEXT)
    with pytest.raises(ToolError, match=rf"llama reads the text as {len(token_ids)} tokens that are not the served model's"):
        load_language_model(str(source)).check(TEXT, token_ids[:-1], CONTEXT)


def test_a_source_that_takes_less_at_once_is_refused(served: ServedLanguageModel, source: Path) -> None:
    with pytest.raises(ToolError, match=rf"takes {CONTEXT} tokens at once, the served model's windows have {CONTEXT + 1}"):
        load_language_model(str(source)).check(TEXT, served.encode(TEXT), CONTEXT + 1)


def test_a_source_that_generates_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="bert: an encoder-only model"):
        load_language_model(str(save_encoder("feature-extraction", "bert", tmp_path / "bert")))


def test_a_folder_without_a_decoder_cannot_be_scored(repository: Path) -> None:
    manifest = ModelManifest.load(repository / "llama" / "1")
    with pytest.raises(ManifestError, match="text-generation, allowed: a model with a decoder, its cache and a tokenizer"):
        ServedLanguageModel(repository / "llama" / "1", dataclasses.replace(manifest, cache=None))
