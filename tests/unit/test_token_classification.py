"""Token classification with rows given by hand: tensors, long documents, and texts beyond ASCII."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import InvalidRequest, ManifestError, StepFailed
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.token_classification import TokenClassification
from tests.encoder_doubles import IDS, byte_level, encoder_manifest, loaded_at_once, word_level

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LABEL_OF = {"a": "B-PER", "b": "I-PER", "c": "B-LOC", "d": "I-LOC"}
COLUMNS = {IDS[word]: LABELS.index(label) for word, label in LABEL_OF.items()}


def certain(columns):
    """Logits [len(columns), num_labels] with probability 0.5 for each column."""
    rows = np.zeros((len(columns), len(LABELS)), np.float32)
    rows[np.arange(len(columns)), columns] = np.log(len(LABELS) - 1)
    return rows


def by_word(sequence):
    """A model that knows every word's label, whatever is around it."""
    return certain([COLUMNS.get(token_id, 0) for token_id in sequence.token_ids])


def by_word_but_not_at_edges(sequence):
    """A model that is wrong about the first and last token that a window shows of a text."""
    rows = by_word(sequence)
    rows[[1, -2]] = certain([LABELS.index("B-LOC")])
    return rows


WORDS, BYTES = loaded_at_once(word_level()), loaded_at_once(byte_level())


def make_task(tokenizer=WORDS, **manifest):
    manifest = encoder_manifest("token-classification", **{"output": "token", "labels": LABELS} | manifest)
    spec = dataclasses.replace(manifest.tokenizer, special_tokens={"unk_token": "[UNK]"})
    return TokenClassification(dataclasses.replace(manifest, tokenizer=spec), tokenizer)


def answer(texts, model=by_word, task=None, **parameters):
    prepared = (task or make_task()).prepare(EncodingInput({"text_input": texts}, parameters=parameters), 7, 0.0)
    return prepared.answer([model(sequence) for sequence in prepared.request.sequences])


def found(text, model=by_word, task=None, **parameters):
    return json.loads(answer([text], model, task, **parameters)["result"][0, 0])


# --- what a client gets -----------------------------------------------------------------------------------------------


def test_entities_have_label_score_text_and_characters():
    assert found("the a b is c .") == [
        {"entity_group": "PER", "score": 0.5, "word": "a b", "start": 4, "end": 7},
        {"entity_group": "LOC", "score": 0.5, "word": "c", "start": 11, "end": 12},
    ]


def test_without_aggregation_every_labelled_token_is_shown_with_its_index():
    assert found("the a b", aggregation_strategy="none") == [
        {"entity": "B-PER", "score": 0.5, "index": 2, "word": "a", "start": 4, "end": 5},
        {"entity": "I-PER", "score": 0.5, "index": 3, "word": "b", "start": 6, "end": 7},
    ]


def test_the_tensors_of_a_batch_are_filled_up():
    tensors = answer(["a c", "the", "b"])
    assert tensors["label"].tolist() == [[b"PER", b"LOC"], [b"", b""], [b"PER", b""]]
    assert tensors["score"].tolist() == [[0.5, 0.5], [0, 0], [0.5, 0]]
    assert tensors["start"].tolist() == [[0, 2], [-1, -1], [0, -1]]
    assert tensors["end"].tolist() == [[1, 3], [-1, -1], [1, -1]]
    assert [json.loads(value) for (value,) in tensors["result"]][1] == []
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "label": np.object_,
        "score": np.float32,
        "start": np.int32,
        "end": np.int32,
        "result": np.object_,
    }


@pytest.mark.parametrize("text", ["the film", "  \n ", "\u200b"])
def test_a_text_without_entities_has_empty_tensors(text):
    tensors = answer([text], lambda sequence: certain([0] * len(sequence.token_ids)))
    assert tensors["result"].tolist() == [[b"[]"]]
    assert all(tensors[name].shape == (1, 0) for name in ("label", "score", "start", "end"))


def test_the_manifest_gives_the_strategy_and_a_client_another():
    task = make_task(aggregation_strategy="none")
    assert [item["word"] for item in found("a b", task=task)] == ["a", "b"]
    assert [item["word"] for item in found("a b", task=task, aggregation_strategy="Simple")] == ["a b"]


def test_a_word_the_vocabulary_does_not_have_is_shown_as_it_is_written():
    for strategy in ("none", "simple", "first"):
        shown = found("a Żółw", aggregation_strategy=strategy, ignore_labels='["PER", "B-PER"]')
        assert [(item["word"], item["start"], item["end"]) for item in shown] == [("Żółw", 2, 6)], strategy


def test_a_special_token_in_the_text_is_a_part_of_the_text():
    assert [item["word"] for item in found("a [SEP] c", ignore_labels="[]")] == ["a", "[SEP]", "c"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"aggregation_strategy": "mean"}, "aggregation_strategy"),
        ({"ignore_labels": "O"}, "ignore_labels"),
        ({"ignore_labels": "[1]"}, "ignore_labels"),
        ({"stride": 3}, "stride"),
        ({"truncation": "maybe"}, "truncation"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(parameters, field):
    with pytest.raises(InvalidRequest) as caught:
        answer(["a"], **parameters)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "sequence"}, "encoder.output: got 'sequence', allowed: token"),
        ({"labels": ()}, "encoder.labels: got none"),
        ({"aggregation_strategy": "mean"}, "encoder.aggregation_strategy: got 'mean', allowed: none, simple"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(changes, message):
    with pytest.raises(ManifestError, match=f"^{message}"):
        make_task(**changes)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_score_that_is_no_number_fails_the_request():
    with pytest.raises(StepFailed, match="not finite"):
        answer(["a"], lambda sequence: np.full((len(sequence.token_ids), len(LABELS)), np.nan, np.float32))


# --- long documents ---------------------------------------------------------------------------------------------------


def test_every_window_is_run_and_neighbours_share_the_stride():
    task = make_task(max_length=8, stride=2)
    prepared = task.prepare(EncodingInput({"text_input": ["a b c d e f g h the film", "a"]}), 7, 0.0)
    shown = [" ".join(WORDS.tokens(sequence.token_ids)) for sequence in prepared.request.sequences]
    assert shown == ["[CLS] a b c d e f [SEP]", "[CLS] e f g h the film [SEP]", "[CLS] a [SEP]"]


def test_a_truncated_document_ends_with_its_first_window():
    task = make_task(max_length=8, stride=2)
    assert [item["word"] for item in found("a b c d a b b b a", task=task, truncation=True)] == ["a b", "c d", "a b"]


words = st.lists(st.sampled_from(["a", "b", "b", "c", "d", "the"]), min_size=1, max_size=60)


@given(words, st.integers(1, 10), st.integers(0, 10), st.sampled_from(["none", "simple", "first", "average", "max"]))
def test_no_entity_is_lost_doubled_or_cut_where_windows_end(text, room, stride, strategy):
    # The whole document at once is the reference; every token has the same logits in every window.
    text = " ".join(text)
    whole = found(text, task=make_task(max_length=1000), aggregation_strategy=strategy)
    assert found(text, task=make_task(max_length=max(5, room + 2), stride=stride), aggregation_strategy=strategy) == whole


@given(words, st.integers(4, 12), st.integers(2, 10))
def test_tokens_at_the_edge_of_a_window_are_labelled_by_its_neighbour(text, room, stride):
    # Read whole, the document has only its own two edges, and there the model is wrong both times.
    text = " ".join(text)
    whole = found(text, by_word_but_not_at_edges, task=make_task(max_length=1000))
    task = make_task(max_length=room + 2, stride=min(stride, room - 2))
    assert found(text, by_word_but_not_at_edges, task=task) == whole


# --- characters -------------------------------------------------------------------------------------------------------


def everything_is(column):
    return lambda sequence: certain([column] * len(sequence.token_ids))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("text", ["👩‍👩‍👧", "e\u0301le\u0300ve", "日本語", "𝒳𝓎𝓏 ﬁ", "a\u00a0b"])
def test_characters_are_counted_whatever_bytes_and_marks_they_are_made_of(text, strategy):
    task = make_task(BYTES)
    shown = found(text, everything_is(LABELS.index("I-LOC")), task, aggregation_strategy=strategy)
    slices = [text[item["start"] : item["end"]] for item in shown]
    if strategy == "none":
        visible = [one for one in slices if one]  # a space is a token of its own here, and offsets leave it out
        assert list(dict.fromkeys(visible)) == list(dict.fromkeys(text.replace(" ", "")))
    else:
        assert slices == [text]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), st.integers(6, 12))
def test_one_entity_covers_any_text_from_its_first_to_its_last_visible_character(text, max_length):
    task = make_task(BYTES, max_length=max_length, stride=2)
    shown = found(text, everything_is(LABELS.index("I-LOC")), task)
    assert len(shown) == 1
    assert text[shown[0]["start"] : shown[0]["end"]].strip() == text.strip()
