"""What encoder tasks have in common: parameters, texts, sequences, and the tensors of their answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from fastserve.config import ENCODER_TASKS
from fastserve.errors import InvalidRequest, ManifestError, StepFailed
from fastserve.manifest import GraphSpec
from fastserve.tasks.answer_tensors import json_tensor, mean_of_windows, sigmoid, softmax, string_tensor
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, choice, read_parameters, text_list
from fastserve.tasks.encoding_task import (
    TASKS,
    EncodingInput,
    SequenceMaker,
    make_task,
    optional_texts,
    required_texts,
)
from fastserve.tasks.reranking import Reranking
from fastserve.tasks.sampling_parameters import IGNORED, Parameter, whole_number
from fastserve.tasks.text_classification import TextClassification
from tests.encoder_doubles import CLS, IDS, SEP, encoder_manifest, loaded, word_level

TABLE = {
    **WINDOW_PARAMETERS,
    "top_k": Parameter(whole_number(1), "a whole number, at least 1", None),
    "mode": Parameter(choice("fast", "slow"), "fast or slow", "slow"),
    "names": Parameter(text_list(commas=True), "names", ()),
}


@pytest.fixture
def tokenizer(tmp_path):
    return loaded(word_level(), tmp_path)


def sequences(tokenizer, *, default_deadline_ms=0, **manifest):
    manifest = encoder_manifest("text-classification", **manifest)
    return SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)


def window(maker, text, pair=None):
    ((window,),) = maker.tokenizer.windows_batch([text], None if pair is None else [pair], maker.limits(False))
    return window


# --- the table of tasks -----------------------------------------------------------------------------------------------


def test_every_task_of_the_configuration_has_a_module():
    assert tuple(sorted(TASKS)) == tuple(sorted(ENCODER_TASKS))


def test_the_manifest_says_which_task_it_is(tokenizer):
    assert isinstance(make_task(encoder_manifest("text-classification", labels=("a", "b")), tokenizer), TextClassification)
    assert isinstance(make_task(encoder_manifest("reranking", labels=("a",)), tokenizer), Reranking)


def test_the_default_deadline_reaches_the_task(tokenizer):
    task = make_task(encoder_manifest("text-classification", labels=("a", "b")), tokenizer, default_deadline_ms=250)
    item = EncodingInput({"text_input": ["a"]})
    assert task.prepare(item, 1, now=10.0).request.deadline == 10.25


def test_a_task_that_is_no_encoders_is_refused_naming_those_that_are(tokenizer):
    with pytest.raises(ManifestError, match=r"^task: got 'text-generation', allowed: text-classification, .*reranking"):
        make_task(encoder_manifest("text-generation"), tokenizer)


def test_a_manifest_without_encoder_is_refused(tokenizer):
    manifest = encoder_manifest("text-classification")
    for changed in ({"encoder": None}, {"graphs": {"decoder": GraphSpec({}, (), ())}}):
        broken = {name: getattr(manifest, name) for name in manifest.__slots__} | changed
        with pytest.raises(ManifestError, match=r"^encoder: missing in the manifest of a text-classification model"):
            SequenceMaker(type(manifest)(**broken), tokenizer)


@pytest.mark.parametrize(("max_length", "good"), [(4, False), (5, True)])
def test_a_model_too_short_for_a_pair_of_words_is_refused(tokenizer, max_length, good):
    if good:
        assert sequences(tokenizer, max_length=max_length).limits(False).max_length == max_length
    else:
        with pytest.raises(ManifestError, match=r"^encoder.max_length: got 4, allowed: 5 or more"):
            sequences(tokenizer, max_length=max_length)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_without_parameters_the_defaults_are_those_of_the_table():
    assert read_parameters({}, TABLE) == {
        "deadline_ms": None,
        "truncation": False,
        "top_k": None,
        "mode": "slow",
        "names": (),
    }


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("top_k", "3", 3),
        ("top_k", 3.0, 3),
        ("truncation", "true", True),
        ("truncation", 0, False),
        ("mode", " FAST ", "fast"),
        ("names", "a, b ,,c", ("a", "b", "c")),
        ("names", '["a, b", "é👩‍👧"]', ("a, b", "é👩‍👧")),
        ("names", ' ["a"]', ("a",)),
        ("names", ["a", "b"], ("a", "b")),
        ("names", "", ()),
        ("names", "[]", ()),
        ("deadline_ms", "20", 20),
        ("top_k", None, None),
    ],
)
def test_a_good_value_is_read(name, value, read):
    assert read_parameters({name: value}, TABLE)[name] == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", "many"),
        ("top_k", True),
        ("truncation", "perhaps"),
        ("mode", "medium"),
        ("names", '["a", 1]'),
        ("names", '["a"'),
        ("names", "[" * 100_000),
        ("names", '["\\ud800"]'),
        ("names", 7),
        ("deadline_ms", -1),
    ],
)
def test_a_bad_value_is_refused_naming_what_is_allowed(name, value):
    with pytest.raises(InvalidRequest) as caught:
        read_parameters({name: value}, TABLE)
    assert caught.value.field == name
    assert str(caught.value).endswith(f"allowed: {TABLE[name].allowed}")


def test_only_a_list_that_allows_commas_is_read_without_being_json():
    with pytest.raises(ValueError):
        text_list()("a, b")
    assert text_list()('["a"]') == ("a",)


def test_an_unknown_parameter_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(InvalidRequest, match=r"^topk: got 3, allowed: a parameter of this task: deadline_ms, truncation, top_k"):
        read_parameters({"topk": 3}, TABLE)


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_keys_that_are_tritons_own_business_are_passed_over(name):
    assert read_parameters({name: "anything"}, TABLE) == read_parameters({}, TABLE)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_missing_text_is_refused_where_it_is_needed():
    item = EncodingInput({"text_input": ["a", "b"]})
    assert required_texts(item, "text_input") == ["a", "b"]
    assert optional_texts(item, "text_pair") is None
    with pytest.raises(InvalidRequest, match=r"^text_pair: got None, allowed: a text for each row"):
        required_texts(item, "text_pair")


@pytest.mark.parametrize("read", [required_texts, optional_texts])
def test_an_empty_text_is_refused_among_others_too(read):
    with pytest.raises(InvalidRequest, match=r"^text_input: got '', allowed: a text that is not empty"):
        read(EncodingInput({"text_input": ["a", "", "b"]}), "text_input")


# --- sequences --------------------------------------------------------------------------------------------------------


def test_a_sequence_has_types_only_where_the_model_takes_them_and_they_tell_something(tokenizer):
    maker = sequences(tokenizer)
    pair = maker.sequence(window(maker, "a", "b"))
    assert pair.token_ids == (CLS, IDS["a"], SEP, IDS["b"], SEP)
    assert pair.token_type_ids == (0, 0, 0, 1, 1)
    assert maker.sequence(window(maker, "a")).token_type_ids == ()
    plain = sequences(tokenizer, token_types=False)
    assert plain.sequence(window(plain, "a", "b")).token_type_ids == ()


def test_a_sequence_may_ask_for_some_of_its_rows(tokenizer):
    maker = sequences(tokenizer)
    assert maker.sequence(window(maker, "a b")).rows == ()
    assert maker.sequence(window(maker, "a b"), rows=(2,)).rows == (2,)


def test_a_text_that_gives_no_token_at_all_is_refused(tmp_path):
    bare = word_level()
    bare.post_processor = None
    maker = sequences(loaded(bare, tmp_path))
    assert maker.sequence(window(maker, "a")).token_ids == (IDS["a"],)
    with pytest.raises(InvalidRequest, match=r"^text_input: got '', allowed: a text that gives at least one token"):
        maker.sequence(window(maker, "   "))


def test_a_token_the_model_has_no_row_for_is_refused_also_where_ids_have_gaps(tmp_path):
    gaps = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 900}, unk_token="[UNK]"))
    maker = sequences(loaded(gaps, tmp_path), vocab_size=10)
    assert maker.sequence(window(maker, "a")).token_ids == (1,)
    with pytest.raises(InvalidRequest, match=r"^text_input: got 'a word of token id 900', allowed: words whose"):
        maker.sequence(window(maker, "b"))


@pytest.mark.parametrize(("texts", "field"), [(("[/E2]", "a"), "text_input"), (("a", "[/E2]"), "text_pair")])
def test_a_token_the_model_has_no_row_for_is_refused_naming_its_text(tokenizer, texts, field):
    maker = sequences(tokenizer, vocab_size=tokenizer.size - 1)
    maker.sequence(window(maker, "[E2]"))
    with pytest.raises(InvalidRequest, match=rf"^{field}: got 'a word of token id {IDS['[/E2]']}', allowed: words whose"):
        maker.sequence(window(maker, *texts))


@pytest.mark.parametrize(("own", "default", "deadline"), [(None, 0, None), (100, 0, 5.1), (None, 2000, 7.0), (100, 2000, 5.1)])
def test_the_clients_deadline_counts_before_the_default(tokenizer, own, default, deadline):
    maker = sequences(tokenizer, default_deadline_ms=default)
    sequence = maker.sequence(window(maker, "a"))
    request = maker.request(7, [sequence], 5.0, {"deadline_ms": own})
    assert (request.request_id, request.sequences, request.deadline) == (7, (sequence,), deadline)


# --- answers ----------------------------------------------------------------------------------------------------------


def rows(*values):
    return [np.array(row, np.float32) for row in values]


def test_softmax_and_sigmoid_bear_large_numbers_and_keep_small_ones_apart():
    logits = np.array([1000.0, 0.0, -1000.0], np.float32)
    assert softmax(logits).tolist() == [1.0, 0.0, 0.0]
    assert sigmoid(logits).tolist() == [1.0, 0.5, 0.0]
    small = sigmoid(np.array([-20.0, -30.0], np.float32))
    assert small == pytest.approx([2.061e-9, 9.358e-14], rel=1e-3)
    assert softmax(logits).dtype == sigmoid(logits).dtype == np.float32


def test_the_windows_of_a_text_are_averaged_each_counting_the_same():
    mean = mean_of_windows(rows([1, 0], [3, 0], [5, 6], [7, 8], [9, 10]), [1, 3, 1])
    assert [row.tolist() for row in mean] == [[1, 0], [5, pytest.approx(14 / 3)], [9, 10]]
    assert all(row.dtype == np.float32 for row in mean)


def test_texts_of_one_window_each_are_left_as_they_are():
    given = rows([1, 0], [3, 0])
    assert mean_of_windows(given, [1, 1]) == given


def test_strings_are_utf8_bytes_however_long_and_whatever_is_in_them():
    tensor = string_tensor([["é👩‍👧", "a\0"], ["", "x" * 1000]])
    assert tensor.dtype == np.object_
    assert tensor.tolist() == [["é👩‍👧".encode(), b"a\0"], [b"", b"x" * 1000]]


def test_json_shows_characters_as_they_are():
    tensor = json_tensor([{"label": "čaj 茶"}, [1.5]])
    assert tensor.shape == (2, 1)
    assert "čaj 茶".encode() in tensor[0, 0]
    assert [json.loads(value) for value in tensor[:, 0]] == [{"label": "čaj 茶"}, [1.5]]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_the_models_fault_and_no_json(number):
    with pytest.raises(StepFailed, match="not finite"):
        json_tensor([{"score": number}])
