"""Text classification and reranking: rows given by hand, answers as tensors and as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fastserve.errors import InvalidRequest, ManifestError, StepFailed
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.reranking import Reranking
from fastserve.tasks.text_classification import TextClassification
from tests.encoder_doubles import CLS, IDS, SEP, UNK, encoder_manifest, loaded, word_level

LABELS = ("bad", "neutral", "good")
LONG = " ".join("abcdefgh" * 4)
"""32 words, in windows of 16 tokens: 14 words each, 4 of them shared."""


@pytest.fixture
def tokenizer(tmp_path):
    return loaded(word_level(), tmp_path)


@pytest.fixture
def make(tokenizer):
    def make(**encoder):
        return TextClassification(encoder_manifest("text-classification", **({"labels": LABELS} | encoder)), tokenizer)

    return make


@pytest.fixture
def rerank(tokenizer):
    def make(**encoder):
        return Reranking(encoder_manifest("reranking", **({"labels": ("relevance",)} | encoder)), tokenizer)

    return make


def prepare(task, texts, pairs=None, **parameters):
    given = {"text_input": texts} | ({} if pairs is None else {"text_pair": pairs})
    return task.prepare(EncodingInput(given, parameters=parameters), 3, 0.0)


def answer(prepared, *outputs):
    assert len(prepared.request.sequences) == len(outputs)
    return prepared.answer([np.array(output, np.float32) for output in outputs])


def result(tensors, row=0):
    return json.loads(tensors["result"][row, 0])


def token_ids(prepared):
    return [sequence.token_ids for sequence in prepared.request.sequences]


# --- what is run ------------------------------------------------------------------------------------------------------


def test_a_text_is_one_sequence_with_the_models_special_tokens(make):
    request = prepare(make(), ["the film"]).request
    assert (request.request_id, request.deadline) == (3, None)
    assert request.sequences[0].token_ids == (CLS, IDS["the"], IDS["film"], SEP)


def test_each_row_of_a_batch_is_a_sequence(make):
    assert token_ids(prepare(make(), ["a", "b c"])) == [(CLS, IDS["a"], SEP), (CLS, IDS["b"], IDS["c"], SEP)]


def test_a_pair_is_one_sequence_with_token_types(make):
    (sequence,) = prepare(make(), ["a"], ["b"]).request.sequences
    assert sequence.token_ids == (CLS, IDS["a"], SEP, IDS["b"], SEP)
    assert sequence.token_type_ids == (0, 0, 0, 1, 1)


@pytest.mark.parametrize("text", [" ", "\n\t\u00a0", "\u200b"])
def test_a_text_of_nothing_that_shows_is_run_as_it_is(make, text):
    (sequence,) = prepare(make(), [text]).request.sequences
    assert sequence.token_ids in ((CLS, SEP), (CLS, UNK, SEP))


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦", "e\u0301\u0302\u0303", "日本語", "\U0010ffff", "a\0b", "\u202eabc"])
def test_any_characters_are_run(make, text):
    assert prepare(make(), [text]).request.sequences[0].token_ids[0] == CLS


def test_a_long_text_is_cut_into_windows_and_nothing_is_lost(make):
    ids = token_ids(prepare(make(), [LONG]))
    assert [len(window) for window in ids] == [16, 16, 14]
    assert [*ids[0][1:-1], *ids[1][5:-1], *ids[2][5:-1]] == [IDS[word] for word in LONG.split()]


def test_a_very_long_text_is_cut_too(make):
    ids = token_ids(prepare(make(max_length=128, stride=32), ["a b c " * 20_000]))
    assert len(ids) == math.ceil((60_000 - 126) / (126 - 32)) + 1
    assert max(map(len, ids)) == 128


def test_of_a_long_pair_the_second_text_is_cut(make):
    ids = token_ids(prepare(make(), ["a b c"], [LONG]))
    assert all(window[:5] == (CLS, IDS["a"], IDS["b"], IDS["c"], SEP) for window in ids)
    assert len(ids) == 5


def test_a_first_text_that_leaves_no_room_is_refused(make):
    with pytest.raises(InvalidRequest, match=r"^text_input: got '32 tokens', allowed: at most 12, so that text_pair has room"):
        prepare(make(), [LONG], ["a"])


def test_truncation_runs_the_beginning_only(make):
    assert [len(window) for window in token_ids(prepare(make(), [LONG], truncation="true"))] == [16]
    (ids,) = token_ids(prepare(make(), [LONG], [LONG], truncation=True))
    assert (len(ids), ids.index(SEP)) == (16, 7)


@pytest.mark.parametrize(
    ("texts", "pairs", "field"),
    [([""], None, "text_input"), (["a", ""], None, "text_input"), (["a"], [""], "text_pair"), ([], ["a"], "text_input")],
)
def test_an_empty_or_missing_text_is_refused(make, texts, pairs, field):
    with pytest.raises(InvalidRequest) as caught:
        prepare(make(), texts, pairs)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("parameter", "value"), [("top_k", 0), ("function_to_apply", "relu"), ("truncation", "yes"), ("max_tokens", 5)]
)
def test_a_bad_or_unknown_parameter_is_refused(make, parameter, value):
    with pytest.raises(InvalidRequest) as caught:
        prepare(make(), ["a"], **{parameter: value})
    assert caught.value.field == parameter


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_best_label_comes_first_and_the_scores_are_in_the_order_of_the_labels(make):
    tensors = answer(prepare(make(), ["a"]), [0.0, math.log(3), math.log(4)])
    assert tensors["label"].tolist() == [[b"good"]]
    assert tensors["score"].tolist() == [[0.5]]
    assert tensors["scores"][0] == pytest.approx([0.125, 0.375, 0.5])
    shown = [
        {"label": label, "score": pytest.approx(score)}
        for label, score in zip(("good", "neutral", "bad"), (0.5, 0.375, 0.125), strict=True)
    ]
    assert result(tensors) == shown
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        "label": ((1, 1), np.object_),
        "score": ((1, 1), np.float32),
        "scores": ((1, 3), np.float32),
        "result": ((1, 1), np.object_),
    }


def test_a_batch_has_a_row_for_each_text(make):
    tensors = answer(prepare(make(), ["a", "b"]), [0, 0, 9], [9, 0, 0])
    assert tensors["label"].tolist() == [[b"good"], [b"bad"]]
    assert tensors["scores"].shape == (2, 3)
    assert [result(tensors, row)[0]["label"] for row in (0, 1)] == ["good", "bad"]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), ("2", 2), (50, 3), (None, 3)])
def test_top_k_shortens_the_result_and_nothing_else(make, top_k, count):
    tensors = answer(prepare(make(), ["a"], top_k=top_k), [1, 2, 3])
    assert len(result(tensors)) == count
    assert tensors["scores"].shape == (1, 3)


def test_of_equal_labels_the_first_wins(make):
    tensors = answer(prepare(make(), ["a"]), [1, 1, 1])
    assert tensors["label"][0, 0] == b"bad"
    assert [item["label"] for item in result(tensors)] == list(LABELS)


@pytest.mark.parametrize(
    ("problem_type", "labels", "logits", "scores"),
    [
        ("single_label", LABELS, [0, 0, 0], [1 / 3, 1 / 3, 1 / 3]),
        ("multi_label", LABELS, [0, 0, 0], [0.5, 0.5, 0.5]),
        ("single_label", ("only",), [0], [0.5]),
        ("regression", ("only",), [2.5], [2.5]),
        ("regression", LABELS, [2.5, -1, 0], [2.5, -1, 0]),
    ],
)
def test_the_problem_type_decides_how_logits_become_scores(make, problem_type, labels, logits, scores):
    tensors = answer(prepare(make(problem_type=problem_type, labels=labels), ["a"]), logits)
    assert tensors["scores"][0] == pytest.approx(scores)


@pytest.mark.parametrize(("function", "scores"), [("softmax", [0.5, 0.5]), ("Sigmoid", [0.5, 0.5]), ("none", [0, 0])])
@pytest.mark.parametrize("problem_type", ["single_label", "multi_label", "regression"])
def test_the_client_may_choose_the_function(make, problem_type, function, scores):
    task = make(problem_type=problem_type, labels=("x", "y"))
    assert answer(prepare(task, ["a"], function_to_apply=function), [0, 0])["scores"][0] == pytest.approx(scores)


def test_the_logits_of_windows_are_averaged_before_they_become_scores(make):
    task = make(problem_type="regression", labels=("x", "y"))
    tensors = answer(prepare(task, ["a", LONG, "b"]), [1, 0], [1, 2], [2, 3], [6, 7], [0, 5])
    assert tensors["scores"].tolist() == [[1, 0], [3, 4], [0, 5]]


def test_labels_beyond_ascii_are_shown_as_they_are(make):
    tensors = answer(prepare(make(labels=("čaj", "茶👍")), ["a"]), [0, 1])
    assert tensors["label"][0, 0].decode() == "茶👍"
    assert "čaj" in tensors["result"][0, 0].decode()


def test_a_model_that_computed_no_number_gives_an_error_and_no_answer(make):
    with pytest.raises(StepFailed):
        answer(prepare(make(), ["a"]), [math.nan, 0, 0])


@pytest.mark.parametrize(("encoder", "field"), [({"labels": ()}, "labels"), ({"output": "token"}, "output")])
def test_a_model_that_is_no_classifier_of_texts_is_refused(make, encoder, field):
    with pytest.raises(ManifestError, match=rf"^encoder\.{field}: got "):
        make(**encoder)


# --- reranking --------------------------------------------------------------------------------------------------------


def test_a_document_is_scored_by_the_sigmoid_of_its_logit(rerank):
    prepared = prepare(rerank(), ["a", "a"], ["b", "c"])
    assert prepared.request.sequences[1].token_type_ids == (0, 0, 0, 1, 1)
    tensors = answer(prepared, [0], [math.log(3)])
    assert tensors["score"].tolist() == [[0.5], [0.75]]
    assert [result(tensors, row) for row in (0, 1)] == [{"score": 0.5}, {"score": 0.75}]


def test_the_best_window_of_a_document_counts(rerank):
    prepared = prepare(rerank(), ["a"] * 3, ["b", LONG, "c"], function_to_apply="none")
    windows = len(prepared.request.sequences) - 2
    assert windows > 2
    tensors = answer(prepared, [9], *[[index] for index in range(windows - 1)], [-5], [-7])
    assert tensors["score"].tolist() == [[9], [windows - 2], [-7]]


def test_tiny_scores_keep_their_order(rerank):
    tensors = answer(prepare(rerank(), ["a", "a"], ["b", "c"]), [-40], [-41])
    assert tensors["score"][0, 0] > tensors["score"][1, 0] > 0


def test_a_model_for_regression_gives_its_bare_value(rerank):
    assert answer(prepare(rerank(problem_type="regression"), ["a"], ["b"]), [4])["score"].tolist() == [[4]]


def test_a_truncated_pair_loses_the_end_of_the_longer_text(rerank):
    (ids,) = token_ids(prepare(rerank(), [LONG], ["a b"], truncation=True))
    assert (len(ids), ids[-4:]) == (16, (SEP, IDS["a"], IDS["b"], SEP))


def test_a_query_without_document_is_refused(rerank):
    with pytest.raises(InvalidRequest, match=r"^text_pair: got None, allowed: a text for each row"):
        prepare(rerank(), ["a"])


@pytest.mark.parametrize("function", ["softmax", "best"])
def test_a_function_that_means_nothing_for_one_score_is_refused(rerank, function):
    with pytest.raises(InvalidRequest, match=r"^function_to_apply: .*allowed: sigmoid or none"):
        prepare(rerank(), ["a"], ["b"], function_to_apply=function)


@pytest.mark.parametrize("labels", [(), ("no", "yes")])
def test_a_model_without_one_label_cannot_rerank(rerank, labels):
    with pytest.raises(ManifestError, match=rf"^encoder\.labels: got {len(labels)} of them, allowed: 1"):
        rerank(labels=labels)
