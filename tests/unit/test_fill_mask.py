"""Fill-mask with rows given by hand: proposals, targets, several masks, long texts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import InvalidRequest, ManifestError, StepFailed
from fastserve.tasks import fill_mask
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.fill_mask import FillMask
from tests.encoder_doubles import IDS, MASK, SPECIAL, encoder_manifest, loaded_at_once, word_level

WORDS = loaded_at_once(word_level())
VOCAB_SIZE = WORDS.size
PAD = SPECIAL.index("[PAD]")


def make_task(mask=MASK, **manifest):
    manifest = encoder_manifest("fill-mask", **{"output": "row", "vocab_size": VOCAB_SIZE} | manifest)
    spec = dataclasses.replace(manifest.tokenizer, mask_token_id=mask, pad_token_id=PAD)
    return FillMask(dataclasses.replace(manifest, tokenizer=spec), WORDS)


def likes(**weights):
    """A model that gives each word its weight at every mask, and all others nothing."""
    row = np.full(VOCAB_SIZE, -np.inf, np.float32)
    for word, weight in weights.items():
        row[IDS[word]] = np.log(weight)
    return lambda sequence: np.stack([row] * len(sequence.rows))


def answer(texts, model, task=None, **parameters):
    prepared = (task or make_task()).prepare(EncodingInput({"text_input": texts}, parameters=parameters), 7, 0.0)
    return prepared.answer([model(sequence) for sequence in prepared.request.sequences])


def found(text, model, task=None, **parameters):
    return json.loads(answer([text], model, task, **parameters)["result"][0, 0])


# --- one mask ---------------------------------------------------------------------------------------------------------


def test_the_likeliest_tokens_come_first_with_the_text_they_make():
    assert found("the [MASK] is good", likes(film=3, a=1), top_k="2") == [
        {"score": pytest.approx(0.75), "token": IDS["film"], "token_str": "film", "sequence": "the film is good"},
        {"score": pytest.approx(0.25), "token": IDS["a"], "token_str": "a", "sequence": "the a is good"},
    ]


def test_five_tokens_are_proposed_unless_the_client_wants_another_number():
    model = likes(a=1, b=2, c=3, d=4, e=5, f=6)
    assert [item["token_str"] for item in found("[MASK]", model)] == ["f", "e", "d", "c", "b"]
    assert len(found("[MASK]", model, top_k=10**9)) == VOCAB_SIZE


def test_of_equal_tokens_the_first_in_the_vocabulary_comes_first():
    model = likes(**dict.fromkeys("hgfedcba", 1))
    assert [item["token_str"] for item in found("[MASK]", model, top_k=3)] == ["a", "b", "c"]


def test_special_tokens_are_left_out_of_the_text_and_padding_always():
    shown = found("a [SEP] [MASK] [PAD]", likes(b=1), top_k=1)
    assert shown[0]["sequence"] == "a b"
    assert found("[PAD] [MASK] [MASK]", likes(b=1), top_k=1)[0][0]["sequence"] == "[CLS] b [MASK] [SEP]"


def test_a_special_token_is_proposed_by_its_name_and_leaves_the_text_as_it_is_without():
    shown = found("a [MASK]", likes(**{"[SEP]": 1}), top_k=1)
    assert shown == [{"score": 1.0, "token": IDS["[SEP]"], "token_str": "[SEP]", "sequence": "a"}]


def test_only_the_rows_of_masks_are_asked_for():
    item = EncodingInput({"text_input": ["the [MASK] is [MASK]", "a [MASK]"]})
    prepared = make_task().prepare(item, 7, 0.0)
    assert [sequence.rows for sequence in prepared.request.sequences] == [(2, 4), (2,)]


def test_a_graph_that_computes_every_row_serves_too():
    def every_row(sequence):
        rows = np.tile(likes(a=1)(dataclasses.replace(sequence, rows=(0,))), (len(sequence.token_ids), 1))
        rows[list(sequence.rows)] = likes(film=1)(sequence)
        return rows

    assert found("the [MASK]", every_row, make_task(output="token"), top_k=1)[0]["token_str"] == "film"


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_are_ranked_among_themselves_with_their_share_of_all_words():
    model = likes(good=5, bad=2, film=3)
    shown = found("[MASK]", model, targets='["bad", "good", "bad"]')
    assert [(item["token_str"], item["score"]) for item in shown] == [
        ("good", pytest.approx(0.5)),
        ("bad", pytest.approx(0.2)),
    ]
    assert [item["token_str"] for item in found("[MASK]", model, targets='["bad", "good"]', top_k=1)] == ["good"]


def test_a_target_that_is_several_tokens_stands_for_its_first():
    assert found("[MASK]", likes(good=1), targets='["good film"]')[0]["token_str"] == "good"


@pytest.mark.parametrize("targets", ["[]", '[" "]', '["a", ""]', '["[/E2]"]'])
def test_a_target_without_a_token_is_refused(targets):
    with pytest.raises(InvalidRequest) as caught:
        found("[MASK]", likes(a=1), make_task(vocab_size=IDS["[/E2]"]), targets=targets)
    assert caught.value.field == "targets"


# --- several masks ----------------------------------------------------------------------------------------------------


def by_neighbour(sequence):
    """A model that fills each mask with the word before it."""
    rows = np.zeros((len(sequence.rows), VOCAB_SIZE), np.float32)
    rows[range(len(rows)), [sequence.token_ids[row - 1] for row in sequence.rows]] = 20.0
    return rows


def test_each_mask_has_its_own_proposals_and_leaves_the_others_as_they_are():
    shown = found("a [MASK] b [MASK]", by_neighbour, top_k=1)
    assert [[item["token_str"] for item in mask] for mask in shown] == [["a"], ["b"]]
    assert [mask[0]["sequence"] for mask in shown] == ["[CLS] a a b [MASK] [SEP]", "[CLS] a [MASK] b b [SEP]"]


def test_the_tensors_go_mask_by_mask_and_are_filled_up():
    tensors = answer(["a [MASK] b [MASK]", "c [MASK]"], by_neighbour, top_k=1)
    assert tensors["token_str"].tolist() == [[b"a", b"b"], [b"c", b""]]
    assert tensors["token"].tolist() == [[IDS["a"], IDS["b"]], [IDS["c"], -1]]
    assert tensors["score"] == pytest.approx(np.array([[1, 1], [1, 0]]), abs=1e-3)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "token_str": np.object_,
        "token": np.int32,
        "score": np.float32,
        "result": np.object_,
    }


# --- long texts -------------------------------------------------------------------------------------------------------


def test_only_windows_that_fill_a_mask_are_run():
    text = " ".join([*"abcdefgh", "[MASK]", *"abcdefgh"])
    item = EncodingInput({"text_input": [text]})
    (sequence,) = make_task(max_length=8, stride=2).prepare(item, 7, 0.0).request.sequences
    shown = WORDS.tokens(sequence.token_ids)
    assert (shown[sequence.rows[0]], len(shown)) == ("[MASK]", 8)
    assert 2 < sequence.rows[0] < 6


@given(st.lists(st.sampled_from(["a", "b", "c", "[MASK]"]), min_size=1, max_size=40), st.integers(6, 12), st.integers(2, 4))
def test_every_mask_is_filled_once_in_the_whole_text_however_it_is_cut(words, max_length, stride):
    text = " ".join(["d", *words, "[MASK]", "d"])  # no mask is the first word of the text
    task = make_task(max_length=max_length, stride=stride)
    assert found(text, by_neighbour, task, top_k=1) == found(text, by_neighbour, make_task(max_length=1000), top_k=1)


def test_a_truncated_text_is_shown_truncated():
    task = make_task(max_length=6)
    assert found("a [MASK] b c d e f", likes(h=1), task, truncation=True)[0]["sequence"] == "a h b c"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("the film", {}, r"^text_input: got 'the film', allowed: a text with \[MASK\] in it$"),
        ("a b c d [MASK]", {"truncation": True}, r"allowed: a text with \[MASK\] in it before it is truncated$"),
    ],
)
def test_a_text_without_a_mask_is_refused(text, parameters, message):
    with pytest.raises(InvalidRequest, match=message):
        answer(["[MASK]", text], likes(a=1), make_task(max_length=6), **parameters)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({"top_k": 0}, "top_k"), ({"targets": "a"}, "targets"), ({"targets": "[1]"}, "targets"), ({"topk": 1}, "topk")],
)
def test_a_bad_parameter_is_refused_by_name(parameters, field):
    with pytest.raises(InvalidRequest) as caught:
        answer(["[MASK]"], likes(a=1), **parameters)
    assert caught.value.field == field


def test_an_answer_whose_texts_are_too_long_together_is_refused_naming_what_would_help(monkeypatch):
    monkeypatch.setattr(fill_mask, "MOST_TOKENS", 60)
    texts = ["a [MASK] b", "[MASK] [MASK]"]  # one mask times 5 tokens, two masks times 4
    assert answer(texts, likes(a=1), top_k=4)["token"].shape == (2, 8)
    with pytest.raises(InvalidRequest, match=r"^top_k: got 5, allowed: at most 4"):
        answer(texts, likes(a=1), top_k=5)
    with pytest.raises(InvalidRequest, match=r"^text_input: got '7 masks', allowed: fewer"):
        answer([" ".join(["[MASK]"] * 7)], likes(a=1))


def test_a_manifest_of_another_kind_is_refused():
    with pytest.raises(ManifestError, match=r"^tokenizer.mask_token_id: got None"):
        make_task(mask=None)
    with pytest.raises(ManifestError, match=r"^encoder.output: got 'sequence', allowed: row or token"):
        make_task(output="sequence")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_score_that_is_no_number_fails_the_request():
    with pytest.raises(StepFailed, match="not finite"):
        answer(["[MASK]"], lambda sequence: np.full((1, VOCAB_SIZE), np.nan, np.float32))
