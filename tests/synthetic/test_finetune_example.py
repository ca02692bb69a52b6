"""The example that fine-tunes for entities: a tiny model learns a tiny file, and what it saves is an ordinary model folder."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer

from fastserve.export import source_predictions
from fastserve.tools.evaluation.conll import read_conll
from fastserve.tools.evaluation.prediction import predict
from fastserve.tools.evaluation.source_model import SourceModel
from fastserve.tools.evaluation.token_classification import TaggedSentence, TokenClassification
from tests.synthetic.tiny_encoders import save_encoder

PEOPLE, PLACES, VERBS = ("ada", "marie", "alan", "kofi"), ("london", "paris", "berlin", "accra"), ("visited", "likes")
"""Accra and some surnames are not in the vocabulary: they are spelled out, in several tokens."""


def sentence(source: random.Random) -> str:
    person, place = source.choice(PEOPLE), source.choice(PLACES)
    lines = [f"{person}\tB-PER", f"{person}son\tI-PER", f"{source.choice(VERBS)}\tO", f"{place}\tB-LOC", ".\tO"]
    return "\n".join(lines if source.random() < 0.7 else lines[2:]) + "\n\n"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    path = Path(__file__).resolve().parents[2] / "examples" / "finetune_ner.py"
    spec = importlib.util.spec_from_file_location("finetune_ner", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conll")
    source = random.Random(0)
    for name, count in (("train", 200), ("dev", 20), ("test", 40)):
        (folder / f"{name}.conll").write_text("".join(sentence(source) for _ in range(count)))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder without a head, as MiniLM is."""
    return str(save_encoder("feature-extraction", "bert", tmp_path_factory.mktemp("base"), pad_token_id=0))


def run(example: ModuleType, files: Path, base: str, output: Path, *more: str) -> int:
    splits = [str(files / f"{name}.conll") for name in ("train", "dev", "test")]
    settings = ["--model", base, "--output", str(output), "--epochs", "4", "--learning-rate", "3e-3"]
    return int(example.main([*splits, *settings, *more]))


def test_it_learns_the_file_and_saves_a_folder_that_says_its_labels(
    example: ModuleType, files: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my ner"
    assert run(example, files, base, output) == 0
    out = capsys.readouterr().out
    model: Any = AutoModelForTokenClassification.from_pretrained(output)
    assert list(model.config.id2label.values()) == ["O", "B-LOC", "B-PER", "I-PER"]
    assert AutoTokenizer.from_pretrained(output).is_fast
    (score,) = [float(line.rpartition(" ")[2]) for line in out.splitlines() if line.startswith("micro F1 on test")]
    assert score > 0.95
    assert f"fastserve export '{output}' --task token-classification --name 'my ner'" in out
    assert f"--compare '{output}' --base {base}" in out

    sentences = [TaggedSentence("", each.words, each.tags) for each in read_conll(files / "test.conll")]
    task = TokenClassification(sentences, {})
    source = source_predictions.load(str(output), "token-classification")
    found = predict(task, SourceModel(source, source.labels, ()), lambda: None)
    assert task.report(found.values).metrics["F1"] == pytest.approx(score, abs=1e-4)  # what evaluate will say of it


def test_the_same_seed_gives_the_same_weights(example: ModuleType, files: Path, base: str, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("one", "two", "three")]
    for output, seed in zip(outputs, ("3", "3", "4"), strict=True):
        assert run(example, files, base, output, "--seed", seed, "--epochs", "1", "--max-sentences", "30") == 0
    one, two, three = ((output / "model.safetensors").read_bytes() for output in outputs)
    assert one == two != three


def test_a_bad_file_is_one_line(
    example: ModuleType, files: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("train", "dev", "test"):
        (bad / f"{name}.conll").write_text("ada\tB-PER\nvisited\n")
    assert run(example, bad, base, tmp_path / "out") == 1
    assert "train.conll:2: columns: got 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
