"""Question answering with logits given by hand: what a client gets, long contexts, and texts beyond ASCII."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import InvalidRequest, ManifestError, RequestTooLong, StepFailed
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.question_answering import MOST_ANSWERS, QuestionAnswering
from tests.encoder_doubles import CLS, IDS, byte_level, encoder_manifest, loaded, loaded_at_once, word_level

WORDS, BYTES = loaded_at_once(word_level()), loaded_at_once(byte_level())


def make_task(tokenizer=WORDS, cls="[CLS]", **manifest):
    manifest = encoder_manifest("question-answering", **{"output": "token", "max_length": 32, "stride": 8} | manifest)
    spec = dataclasses.replace(manifest.tokenizer, special_tokens={"cls_token": cls} if cls else {})
    return QuestionAnswering(dataclasses.replace(manifest, tokenizer=spec), tokenizer)


def likes(start, end, cls=0.0):
    """A model in which each word has this weight to start and to end an answer, 1 when it is not named: the question's words
    too. The separators' weights are huge."""

    def model(sequence):
        weights = [
            [{**table, "[CLS]": cls, "[SEP]": 1e6}.get(word, 1.0) for word in WORDS.tokens(sequence.token_ids)]
            for table in (start, end)
        ]
        with np.errstate(divide="ignore"):
            return np.log(np.array(weights, np.float32)).T

    return model


def answer(questions, contexts, model, task=None, **parameters):
    item = EncodingInput({"question": questions, "context": contexts}, parameters=parameters)
    prepared = (task or make_task()).prepare(item, 7, 0.0)
    return prepared.answer([model(sequence) for sequence in prepared.request.sequences])


def found(context, model, task=None, question="the", **parameters):
    return json.loads(answer([question], [context], model, task, **parameters)["result"][0, 0])


# --- what a client gets -----------------------------------------------------------------------------------------------


def test_the_answer_is_the_span_with_the_best_start_and_end():
    model = likes({"b": 7}, {"c": 17})
    tensors = answer(["is a good"], ["a b c d"], model)
    score = 7 / 10 * 17 / 20  # of the four words of the context; the question's and the separators do not count
    assert tensors["answer"].tolist() == [[b"b c"]]
    assert tensors["score"][0, 0] == pytest.approx(score)
    assert (tensors["start"].tolist(), tensors["end"].tolist()) == ([[2]], [[5]])
    assert json.loads(tensors["result"][0, 0]) == [{"answer": "b c", "score": pytest.approx(score), "start": 2, "end": 5}]
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "answer": np.object_,
        "score": np.float32,
        "start": np.int32,
        "end": np.int32,
        "result": np.object_,
    }


def test_the_rows_of_a_batch_are_answered_each_from_its_own_context():
    contexts = ["a b", " ".join("abcdefgh" * 6), "d d b"]
    tensors = answer(["is"] * 3, contexts, likes({"b": 100}, {"b": 100}))
    assert tensors["answer"].tolist() == [[b"b"]] * 3
    assert tensors["start"].tolist() == [[2], [2], [4]]


def test_the_best_answers_come_best_first():
    shown = found("a b c", likes({"a": 8, "c": 4}, {"a": 2, "c": 4}), top_k="4")
    assert [item["answer"] for item in shown] == ["a b c", "a", "c", "a b"]
    assert [item["score"] for item in shown] == pytest.approx([8 / 13 * 4 / 7, 8 / 13 * 2 / 7, 4 / 13 * 4 / 7, 8 / 13 * 1 / 7])


def test_there_are_as_many_answers_as_the_client_wants_when_the_context_has_them():
    model = likes({}, {})
    assert len(found("a b c d e f g h", model, top_k=30)) == 30
    assert len(found("a b c d e f g h", model, top_k=MOST_ANSWERS)) == 8 * 9 / 2  # every span


def test_an_answer_is_no_longer_than_the_client_allows():
    model = likes({"a": 50}, {"h": 50})
    assert found("a b c d e f g h", model)[0]["answer"] == "a b c d e f g h"
    assert len(found("a b c d e f g h", model, max_answer_length=3)[0]["answer"].split()) <= 3


def test_a_token_inside_a_word_gives_the_whole_word():
    task = make_task(BYTES, cls="<s>", max_length=64)
    context = "née in Paris"
    inside = context.index("r")  # its own byte, as é is of two

    def model(sequence):
        rows = np.zeros((len(sequence.token_ids), 2), np.float32)
        rows[len(sequence.token_ids) - 1 - (len(context) - inside)] = 9.0
        return rows

    assert found(context, model, task)[0] == {"answer": "Paris", "score": pytest.approx(1, abs=0.1), "start": 7, "end": 12}


def test_answers_that_read_the_same_are_one_with_the_sum_of_their_scores():
    shown = found("a b c b", likes({"b": 49}, {"b": 49}), top_k=9)
    assert shown[0]["answer"] == "b"
    assert shown[0]["start"] == 2
    assert shown[0]["score"] == pytest.approx(2 * 0.49 * 0.49)
    assert len({item["answer"] for item in shown}) == len(shown)


# --- no answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "best"), [(1.0, "b"), (500.0, "")])
def test_no_answer_competes_with_the_answers_when_the_client_asks_for_it(weight, best):
    model = likes({"b": 98}, {"b": 98}, cls=weight)
    shown = found("a b c", model, handle_impossible_answer="true", top_k=9)
    assert shown[0]["answer"] == best
    null = next(item for item in shown if item["answer"] == "")
    assert null == {"answer": "", "score": pytest.approx((weight / (weight + 100)) ** 2), "start": 0, "end": 0}
    assert all(item["answer"] for item in found("a b c", model, top_k=50))


def test_the_score_of_no_answer_is_that_of_the_window_that_believes_it_least():
    task = make_task(max_length=9, stride=0)  # [CLS] the [SEP], five words, [SEP]
    weights = {"a": 1.0, "f": 6.0}

    def model(sequence):
        return likes({}, {}, cls=weights[WORDS.tokens(sequence.token_ids)[3]])(sequence)

    shown = found("a b c d e f g h . .", model, task, handle_impossible_answer=True, top_k=MOST_ANSWERS)
    (null,) = (item for item in shown if item["answer"] == "")
    assert null["score"] == pytest.approx((1 / 6) ** 2)


def test_a_model_without_a_token_for_no_answer_never_believes_it():
    model = likes({"b": 2}, {"b": 2}, cls=1e9)
    shown = found("a b c", model, make_task(cls=None), handle_impossible_answer=True, top_k=MOST_ANSWERS)
    assert shown[0] == {"answer": "b", "score": pytest.approx(0.25), "start": 2, "end": 3}
    assert shown[-1] == {"answer": "", "score": 0.0, "start": 0, "end": 0}


def test_a_mark_of_no_answer_that_does_not_begin_the_window_is_a_word_like_any_other(tmp_path):
    bare = word_level()
    bare.post_processor = None
    task = make_task(loaded(bare, tmp_path))
    shown = found("a [CLS]", likes({}, {}, cls=1.0), task, handle_impossible_answer=True, top_k=9)
    assert {item["answer"]: item["score"] for item in shown} == {"a": 0.25, "a [CLS]": 0.25, "[CLS]": 0.25, "": 0.0}


def test_a_context_without_a_word_has_the_empty_answer():
    assert found(" \n ", likes({}, {}, cls=1.0)) == [{"answer": "", "score": 0.0, "start": 0, "end": 0}]


# --- long contexts ----------------------------------------------------------------------------------------------------


def test_the_context_is_cut_and_the_question_is_whole_in_every_window():
    item = EncodingInput({"question": ["is this"], "context": ["a b c d e f g"]})
    prepared = make_task(max_length=10, stride=2).prepare(item, 7, 0.0)
    shown = [" ".join(WORDS.tokens(sequence.token_ids)) for sequence in prepared.request.sequences]
    assert shown == ["[CLS] is this [SEP] a b c d e [SEP]", "[CLS] is this [SEP] d e f g [SEP]"]
    assert prepared.request.sequences[0].token_type_ids == (0,) * 4 + (1,) * 6


def test_an_answer_that_two_windows_see_has_the_sum_of_their_scores():
    task = make_task(max_length=9, stride=2)  # five words of the context in a window
    shown = found("a b c d e f g h", likes({"d": 96}, {"d": 96}), task)
    assert shown == [{"answer": "d", "score": pytest.approx(2 * 0.96**2), "start": 6, "end": 7}]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 6))
def test_every_answer_is_what_its_characters_say(words, room, stride):
    context = "  ".join(words)
    task = make_task(max_length=max(room, 3) + 4, stride=stride)
    shown = found(context, likes({"a": 5, "c": 3}, {"b": 4, "d": 6}), task, top_k=10, handle_impossible_answer=True)
    assert all(item["answer"] == context[item["start"] : item["end"]] for item in shown)
    assert [item["score"] for item in shown] == sorted((item["score"] for item in shown), reverse=True)
    assert len({item["answer"] for item in shown}) == len(shown)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), st.integers(8, 40))
def test_offsets_are_characters_of_any_text(context, max_length):
    task = make_task(BYTES, cls="<s>", max_length=max_length, stride=2)
    generator = np.random.default_rng(0)
    shown = found(context, lambda sequence: generator.random((len(sequence.token_ids), 2), np.float32), task, "é", top_k=20)
    assert shown
    assert all(item["answer"] == context[item["start"] : item["end"]] for item in shown)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_question_that_leaves_the_context_no_room_is_refused():
    with pytest.raises(RequestTooLong, match=r"^question: got '6 tokens', allowed: at most 5, so that context has room"):
        answer(["a b c d e f"], ["a b"], likes({}, {}), make_task(max_length=9))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": MOST_ANSWERS + 1}, "top_k"),
        ({"max_answer_length": 0}, "max_answer_length"),
        ({"handle_impossible_answer": "perhaps"}, "handle_impossible_answer"),
        ({"truncation": True}, "truncation"),
        ({"max_answer_len": 3}, "max_answer_len"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(parameters, field):
    with pytest.raises(InvalidRequest) as caught:
        answer(["a"], ["b"], likes({}, {}), **parameters)
    assert caught.value.field == field


@pytest.mark.parametrize(("question", "context", "field"), [("", "b", "question"), ("a", "", "context")])
def test_an_empty_text_is_refused_by_name(question, context, field):
    with pytest.raises(InvalidRequest) as caught:
        answer([question], [context], likes({}, {}))
    assert caught.value.field == field


def test_a_manifest_of_another_kind_is_refused():
    with pytest.raises(ManifestError, match=r"^encoder.output: got 'sequence', allowed: token"):
        make_task(output="sequence")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_score_that_is_no_number_fails_the_request():
    with pytest.raises(StepFailed, match="not finite"):
        answer(["a"], ["b"], lambda sequence: np.full((len(sequence.token_ids), 2), np.nan, np.float32))


def test_only_the_token_that_begins_the_window_stands_for_no_answer():
    assert IDS["[CLS]"] == CLS
    shown = found("a [CLS] b", likes({"b": 2}, {"b": 2}, cls=2.0), handle_impossible_answer=True, top_k=MOST_ANSWERS)
    (null,) = (item for item in shown if item["answer"] == "")
    assert null["score"] == pytest.approx((2 / 7) ** 2)  # a 1, the mark in the context 2, b 2, and its own 2
    assert "[CLS]" in {item["answer"] for item in shown}
