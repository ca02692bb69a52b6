"""Tasks about tokens against the transformers pipelines: the same model, the same texts, the same answers."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from tests.synthetic.test_tasks_classification import LONG, TEXTS, TOLERANCE, assert_same
from tests.synthetic.tiny_encoders import TINY_ENCODERS
from tests.synthetic.token_task_models import Encoder, encoder

# --- token classification ---------------------------------------------------------------------------------------------

NAMED = [
    *TEXTS,
    "Kofi Annan, born in Ghana, met Marie Curie-Skłodowska at Google's office in Paris...",
    "unaffable antidisestablishmentarianism New York-based co-founder",
    "[SEP] <mask> in [UNK] and <unk> the </s> text [MASK]",
    "e\u0301le\u0300ve ﬁne ½ Ⅳ ① naïve ǅ İstanbul ß ẞ",
]


def entities(model: Encoder, texts: list[str], strategy: str, **parameters: Any) -> list[Any]:
    """What the pipeline finds, with its scores as Python's own numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
        found = [model.reference(text, aggregation_strategy=strategy, **parameters) for text in texts]
    return [[{key: getattr(value, "item", lambda v=value: v)() for key, value in one.items()} for one in row] for row in found]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_text_has_the_entities_of_the_pipeline(family, strategy):
    model = encoder("token-classification", family)
    expected = entities(model, NAMED, strategy)
    assert sum(map(len, expected)) > 15
    assert_same(model.results(NAMED, aggregation_strategy=strategy), expected)


@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
@pytest.mark.parametrize("ignored", [[], ["PER"], ["O", "B-PER", "LOC"]])
def test_ignored_labels_mean_what_they_mean_to_the_pipeline(strategy, ignored):
    model = encoder("token-classification", "bert")
    ours = model.results(NAMED, aggregation_strategy=strategy, ignore_labels=json.dumps(ignored))
    assert_same(ours, entities(model, NAMED, strategy, ignore_labels=ignored))


@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
@pytest.mark.parametrize("labels", [("NOUN", "VERB", "E-mail", "S-train", "U-boat"), ("O", "B-A-B", "I-A-B", "A-B", "B")])
def test_labels_of_no_scheme_mean_what_they_mean_to_the_pipeline(strategy, labels):
    model = encoder("token-classification", "distilbert", labels)
    assert_same(model.results(NAMED, aggregation_strategy=strategy), entities(model, NAMED, strategy))


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_truncated_text_has_the_entities_of_the_pipeline(family):
    model = encoder("token-classification", family)
    ours = model.results([LONG], aggregation_strategy="simple", truncation=True)
    assert_same(ours, entities(model, [LONG], "simple"))


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_the_tensors_say_what_the_pipeline_says(family):
    model = encoder("token-classification", family)
    expected = entities(model, NAMED, "simple")
    tensors = model.answer({"text_input": NAMED}, aggregation_strategy="simple")
    for row, found in enumerate(expected):
        ours = {name: tensors[name][row, : len(found)].tolist() for name in ("label", "score", "start", "end")}
        ours["label"] = [label.decode() for label in ours["label"]]
        names = {"label": "entity_group", "score": "score", "start": "start", "end": "end"}
        assert_same(ours, {name: [entity[key] for entity in found] for name, key in names.items()})


# --- fill-mask --------------------------------------------------------------------------------------------------------

MASKED = [
    "the film was {} good",
    "{}",
    "Ada Lovelace wrote a {} in London.",
    "日本語 👍 {}, don't   you think?",
    "e\u0301le\u0300ve {}'s naïve !",
    "the {} of {} and {} .",
    "{}{}",
    "the [PAD] and <pad> {} [SEP] </s> end",
]


def masked(model: Encoder) -> list[str]:
    return [text.replace("{}", model.tokenizer.mask_token) for text in MASKED]


@pytest.mark.parametrize("top_k", [5, 1, 40])
@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_mask_has_the_proposals_of_the_pipeline(family, top_k):
    model = encoder("fill-mask", family)
    texts = masked(model)
    assert_same(model.results(texts, top_k=top_k), [model.reference(text, top_k=top_k) for text in texts])


@pytest.mark.parametrize("targets", [["book", "film", "book"], ["City", "riverside", "."]])
@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_targets_mean_what_they_mean_to_the_pipeline(family, targets):
    model = encoder("fill-mask", family)
    texts = masked(model)
    assert_same(
        model.results(texts, targets=json.dumps(targets)), [model.reference(text, targets=list(targets)) for text in texts]
    )


def test_the_mask_tensors_say_what_the_pipeline_says():
    model = encoder("fill-mask", "bert")
    texts = masked(model)[:6]
    tensors = model.answer({"text_input": texts}, top_k=3)
    for row, text in enumerate(texts):
        found = model.reference(text, top_k=3)
        flat = found if isinstance(found[0], dict) else [item for items in found for item in items]
        ours = [
            {"score": score, "token": token, "token_str": shown.decode()}
            for score, token, shown in zip(
                *(tensors[name][row, : len(flat)].tolist() for name in ("score", "token", "token_str")), strict=True
            )
        ]
        assert_same(ours, [{key: item[key] for key in ("score", "token", "token_str")} for item in flat])
        assert tensors["token"][row, len(flat) :].tolist() == [-1] * (9 - len(flat))


def test_a_truncated_masked_text_has_the_proposals_of_the_pipeline():
    model = encoder("fill-mask", "roberta")
    text = f"the <mask> of {LONG}"
    expected = model.reference(text, tokenizer_kwargs={"truncation": True})
    assert_same(model.results([text], truncation=True), [expected])


# --- feature extraction -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_an_embedding_is_the_mean_of_the_pipelines_features(family):
    model = encoder("feature-extraction", family)
    for text in TEXTS:
        (expected,) = np.mean(model.reference(text), axis=1)
        (embedding,) = model.answer({"text_input": [text]})["embedding"]
        assert embedding == pytest.approx(expected, abs=TOLERANCE)
        (direction,) = model.answer({"text_input": [text]}, normalize="true")["embedding"]
        assert direction == pytest.approx(expected / np.linalg.norm(expected), abs=TOLERANCE)


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_truncated_text_has_the_embedding_of_the_truncating_pipeline(family):
    model = encoder("feature-extraction", family)
    (expected,) = np.mean(model.reference(LONG, truncation=True), axis=1)
    (embedding,) = model.answer({"text_input": [LONG]}, truncation=True)["embedding"]
    assert embedding == pytest.approx(expected, abs=TOLERANCE)
