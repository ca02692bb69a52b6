"""What an encoder's manifest says: the user's options, else the source's files, else what transformers does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastserve.errors import InvalidRequest, UnsupportedModel
from fastserve.export.encoders.markers import entity_markers
from fastserve.export.encoders.settings import EncoderSettings, encoder_settings, labels
from fastserve.export.options import ExportOptions
from fastserve.export.source import LoadedModel, Source

LONGEST, VOCAB_SIZE = 512, 100


def settings(
    directory: Path, task: str, *, model_max_length: int = 10**30, config: Any = None, **options: Any
) -> EncoderSettings:
    """Of a model whose folder is empty, so that only options and configuration speak."""
    given = SimpleNamespace(id2label={0: "NO", 1: "YES"}, num_labels=2, problem_type=None, model_type="tiny")
    for name, value in (config or {}).items():
        setattr(given, name, value)
    source = Source(str(directory), "tiny")
    loaded = LoadedModel(source, SimpleNamespace(config=given), SimpleNamespace(model_max_length=model_max_length))
    return encoder_settings(loaded, ExportOptions(directory, task=task, **options), LONGEST, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("task", "field", "value", "allowed"),
    [
        ("text-generation", "max_length", 128, "only for"),
        ("text-generation", "stride", 8, "only for"),
        ("text-classification", "pooling", "mean", "only for feature-extraction"),
        ("text-classification", "aggregation_strategy", "max", "only for token-classification"),
        ("token-classification", "markers", ("a", "b", "c", "d"), "only for relation-extraction"),
        ("text-classification", "max_length", 7, "at least 8"),
        ("text-classification", "stride", -1, "at least 0"),
        ("feature-extraction", "pooling", "max", "mean or cls"),
        ("token-classification", "aggregation_strategy", "median", "none or simple or first"),
        ("relation-extraction", "markers", ("a", "b", "c"), "four different"),
        ("relation-extraction", "markers", ("a", "b", "a", "b"), "four different"),
        ("relation-extraction", "markers", ("a", "b", "c", ""), "four different"),
        ("relation-extraction", "markers", "abcd", "four different"),
        ("relation-extraction", "markers", (1, 2, 3, 4), "four different"),
        ("text-classification", "device", "cuda", "cpu for text-classification"),
        ("text-classification", "max_length", "128", "at least 8"),
        ("text-classification", "max_length", True, "at least 8"),
        ("text-classification", "stride", 1.5, "at least 0"),
    ],
)
def test_an_option_that_does_not_suit_the_task_is_refused_by_name(task: str, field: str, value: object, allowed: str) -> None:
    with pytest.raises(InvalidRequest, match=allowed) as caught:
        ExportOptions(Path(), **{"task": task, field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("task", "options", "model_max_length", "wanted"),
    [
        ("text-classification", {}, 10**30, (512, 128)),
        ("text-classification", {}, 256, (256, 64)),
        ("question-answering", {}, 10**30, (384, 128)),
        ("question-answering", {}, 128, (128, 64)),
        ("text-classification", {"max_length": 512}, 256, (512, 128)),
        ("question-answering", {"max_length": 512}, 256, (512, 128)),
        ("text-classification", {"max_length": 40, "stride": 20}, 256, (40, 20)),
        ("text-classification", {"stride": 0}, 256, (256, 0)),
    ],
)
def test_windows_are_as_long_as_asked_or_as_the_source_takes_them(
    tmp_path: Path, task: str, options: dict[str, Any], model_max_length: int, wanted: tuple[int, int]
) -> None:
    spec = settings(tmp_path, task, model_max_length=model_max_length, **options).spec
    assert (spec.max_length, spec.stride) == wanted


@pytest.mark.parametrize(("field", "value", "allowed"), [("max_length", 513, "at most 512"), ("stride", 257, "at most 256")])
def test_a_window_that_the_model_cannot_take_is_refused(tmp_path: Path, field: str, value: int, allowed: str) -> None:
    with pytest.raises(InvalidRequest, match=allowed) as caught:
        settings(tmp_path, "text-classification", **{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, "single_label"),
        ({"problem_type": "single_label_classification"}, "single_label"),
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"problem_type": "regression"}, "regression"),
        ({"num_labels": 1, "id2label": {0: "relevance"}}, "multi_label"),
    ],
)
def test_scores_are_made_as_the_pipeline_makes_them(tmp_path: Path, config: dict[str, Any], wanted: str) -> None:
    assert settings(tmp_path, "text-classification", config=config).spec.problem_type == wanted


def test_labels_come_in_the_order_of_their_ids() -> None:
    config = SimpleNamespace(id2label={"2": "C", 0: "A", 1: "B"}, model_type="tiny")
    assert labels(SimpleNamespace(config=config)) == ("A", "B", "C")


def test_labels_with_a_gap_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"ids \[0, 2\]"):
        labels(SimpleNamespace(config=SimpleNamespace(id2label={0: "A", 2: "C"}, model_type="tiny")))


def test_tasks_without_a_classifier_have_no_labels(tmp_path: Path) -> None:
    for task in ("question-answering", "fill-mask", "feature-extraction"):
        assert settings(tmp_path, task).spec.labels == ()


def test_zero_shot_says_so_when_no_label_means_entailment(tmp_path: Path) -> None:
    assert settings(tmp_path, "zero-shot-classification").notes == (
        "no label begins with 'entail': the last one, YES, counts as entailment",
    )
    entailing = {"id2label": {0: "ENTAILMENT", 1: "contradiction"}}
    assert settings(tmp_path, "zero-shot-classification", config=entailing).notes == ()


def test_embeddings_are_means_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    silent, asked = settings(tmp_path, "feature-extraction"), settings(tmp_path, "feature-extraction", pooling="cls")
    assert (silent.spec.pooling, asked.spec.pooling) == ("mean", "cls")
    assert len(silent.notes) == 1 and asked.notes == ()


# --- markers ----------------------------------------------------------------------------------------------------------


class WordTokenizer:
    """Every word is a token; those in ``added`` were added. ``split``: words that are two tokens."""

    def __init__(self, *added: str, split: frozenset[str] = frozenset()) -> None:
        self._added = {token: VOCAB_SIZE - len(added) + index for index, token in enumerate(added)}
        self._split = split

    def get_added_vocab(self) -> dict[str, int]:
        return self._added

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "b": 1, "part": 2, **self._added}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        vocabulary = self.get_vocab()
        return {
            "input_ids": [id for word in text.split() for id in ([2, 2] if word in self._split else [vocabulary.get(word, 2)])]
        }


@pytest.mark.parametrize(
    "markers",
    [
        ("[E1]", "[/E1]", "[E2]", "[/E2]"),
        ("<e1>", "</e1>", "<e2>", "</e2>"),
        ("[SUBJ]", "[/SUBJ]", "[OBJ]", "[/OBJ]"),
        ("[SUBJ_START]", "[SUBJ_END]", "[OBJ_START]", "[OBJ_END]"),
        ("[E1start]", "[E1end]", "[E2start]", "[E2end]"),
        ("<S:start>", "<S:end>", "<O:start>", "<O:end>"),
        ("<head>", "</head>", "<tail>", "</tail>"),
        ("[E1]", "[\\E1]", "[E2]", "[\\E2]"),
    ],
)
def test_markers_are_found_among_the_added_tokens_head_first(markers: tuple[str, ...]) -> None:
    tokenizer = WordTokenizer("[CLS]", *reversed(markers))
    assert entity_markers(tokenizer, VOCAB_SIZE, None) == markers


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        (("[CLS]", "[E1]", "[/E1]"), r"no entity markers among .*\[CLS\].*--markers"),
        (("[E1]", "[/E1]", "[E2]", "[/E2]", "<S>", "</S>", "<O>", "</O>"), "several sets .*--markers"),
    ],
)
def test_markers_that_cannot_be_told_are_asked_for(added: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        entity_markers(WordTokenizer(*added), VOCAB_SIZE, None)


def test_markers_may_be_any_tokens_that_the_user_names() -> None:
    assert entity_markers(WordTokenizer("@", "#", "$", "^"), VOCAB_SIZE, ("@", "#", "$", "^")) == ("@", "#", "$", "^")


@pytest.mark.parametrize(
    ("tokenizer", "vocab_size"),
    [
        (WordTokenizer("@", "#", "$"), VOCAB_SIZE),
        (WordTokenizer("@", "#", "$", "^", split=frozenset("^")), VOCAB_SIZE),
        (WordTokenizer("@", "#", "$", "^"), VOCAB_SIZE - 1),
    ],
    ids=["unknown", "two tokens", "beyond the model"],
)
def test_a_marker_that_is_no_token_of_the_model_is_refused_by_name(tokenizer: WordTokenizer, vocab_size: int) -> None:
    with pytest.raises(InvalidRequest, match=r"\^") as caught:
        entity_markers(tokenizer, vocab_size, ("@", "#", "$", "^"))
    assert caught.value.field == "markers"


def test_found_markers_beyond_the_model_are_refused_too() -> None:
    with pytest.raises(UnsupportedModel, match=r"\[/E2\] are not single tokens"):
        entity_markers(WordTokenizer("[E1]", "[/E1]", "[E2]", "[/E2]"), VOCAB_SIZE - 1, None)
