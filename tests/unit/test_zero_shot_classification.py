"""Zero-shot classification: a hypothesis for each label, and what the model says of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fastserve.errors import InvalidRequest, ManifestError
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.zero_shot_classification import ZeroShotClassification
from tests.encoder_doubles import IDS, encoder_manifest, loaded, word_level

LABELS = ("contradiction", "neutral", "entailment")


@pytest.fixture
def make(tmp_path):
    def make(**encoder):
        settings = {"labels": LABELS} | encoder
        return ZeroShotClassification(encoder_manifest("zero-shot-classification", **settings), loaded(word_level(), tmp_path))

    return make


def prepare(task, texts, labels=None, **parameters):
    """``labels``: the tensor's, row by row."""
    given = {"text_input": texts} | ({} if labels is None else {"candidate_labels": labels})
    return task.prepare(EncodingInput(given, parameters=parameters), 0, 0.0)


def words(prepared):
    names = {token_id: word for word, token_id in IDS.items()}
    return [" ".join(names[token_id] for token_id in sequence.token_ids) for sequence in prepared.request.sequences]


def answer(prepared, *outputs):
    assert len(prepared.request.sequences) == len(outputs)
    return prepared.answer([np.array(output, np.float32) for output in outputs])


def result(tensors, row=0):
    return json.loads(tensors["result"][row, 0])


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["good, bad", " good ,bad,", '["good", "bad"]'])
def test_every_label_is_a_hypothesis_about_the_text(make, labels):
    prepared = prepare(make(), ["the film"], candidate_labels=labels, hypothesis_template="this is {} .")
    assert words(prepared) == ["[CLS] the film [SEP] this is good . [SEP]", "[CLS] the film [SEP] this is bad . [SEP]"]
    assert prepared.request.sequences[0].token_type_ids == (0,) * 4 + (1,) * 5


def test_labels_may_be_a_tensor_with_a_row_for_each_text(make):
    prepared = prepare(make(), ["the film", "a"], ["good", "bad", "b", "c"], hypothesis_template="{}")
    expected = [
        "[CLS] the film [SEP] good [SEP]",
        "[CLS] the film [SEP] bad [SEP]",
        "[CLS] a [SEP] b [SEP]",
        "[CLS] a [SEP] c [SEP]",
    ]
    assert words(prepared) == expected


def test_the_tensor_counts_before_the_parameter_and_its_commas_are_text(make):
    prepared = prepare(make(), ["a"], ["b, c"], candidate_labels="d,e", hypothesis_template="{}")
    assert words(prepared) == ["[CLS] a [SEP] b [UNK] c [SEP]"]


def test_the_parameter_is_for_all_rows(make):
    prepared = prepare(make(), ["a", "b"], candidate_labels="good,bad", hypothesis_template="{}")
    assert [line.split()[1::2] for line in words(prepared)] == [["a", "good"], ["a", "bad"], ["b", "good"], ["b", "bad"]]


def test_without_a_template_the_hypothesis_is_the_pipelines(make):
    assert words(prepare(make(), ["a"], ["good"]))[0].endswith("[SEP] [UNK] example is good . [SEP]")


@pytest.mark.parametrize(
    ("template", "hypothesis"), [("{0} not {0}", "good not good"), ("a{{}} {}", "a [UNK] good"), ("{}", "good")]
)
def test_a_template_has_plain_fields(make, template, hypothesis):
    assert words(prepare(make(), ["b"], ["good"], hypothesis_template=template)) == [f"[CLS] b [SEP] {hypothesis} [SEP]"]


@pytest.mark.parametrize(
    "template",
    [
        "no field",
        "",
        "{{}}",
        "{",
        "}",
        "{label}",
        "{1}",
        "{} {}",
        "{} {0}",
        "{:>9}",
        "{0.__class__}",
        "{0[0]}",
        "{!r}",
        5,
    ],
)
def test_any_other_template_is_refused(make, template):
    with pytest.raises(InvalidRequest, match=r"^hypothesis_template: got .*allowed: a text with \{\} where the label"):
        prepare(make(), ["a"], ["good"], hypothesis_template=template)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"candidate_labels": ""},
        {"candidate_labels": " , "},
        {"candidate_labels": "[]"},
        {"candidate_labels": '["a", ""]'},
        {"candidate_labels": '["a"'},
    ],
)
def test_labels_that_are_missing_or_empty_are_refused(make, parameters):
    with pytest.raises(InvalidRequest, match=r"^candidate_labels: got .*allowed: labels with commas"):
        prepare(make(), ["a"], **parameters)


@pytest.mark.parametrize("labels", [[], ["a", ""], ["a", "b", "c"]])
def test_a_tensor_of_labels_with_gaps_is_refused(make, labels):
    with pytest.raises(InvalidRequest, match=r"^candidate_labels: got "):
        prepare(make(), ["a", "b"], labels)


@pytest.mark.parametrize(
    ("text", "labels", "template"),
    [("a" * 100_000, ["b"] * 50, "{}"), ("a", ["b" * 1000], "{0}" * 5000), ("a", ["b"] * 1000, "{}" + "a" * 5000)],
    ids=["text", "label", "template"],
)
def test_pairs_that_would_fill_the_memory_are_refused_before_they_are_made(make, text, labels, template):
    with pytest.raises(InvalidRequest, match=r"^candidate_labels: got '\d+ labels, which make \d+ characters', allowed: fewer"):
        prepare(make(), [text], labels, hypothesis_template=template)


def test_of_a_long_text_every_window_has_the_whole_hypothesis(make):
    lines = words(prepare(make(), ["a b c d e f g h " * 2], ["good", "bad"], hypothesis_template="this is {}"))
    parts = ("a b c d e f g h a b", "g h a b c d e f g h")
    assert lines == [f"[CLS] {part} [SEP] this is {label} [SEP]" for label in ("good", "bad") for part in parts]


def test_truncation_cuts_the_text_and_never_the_hypothesis(make):
    lines = words(prepare(make(), ["a b c d e f g h " * 2], ["good"], hypothesis_template="this is {}", truncation=True))
    assert lines == ["[CLS] a b c d e f g h a b [SEP] this is good [SEP]"]


def test_a_label_that_leaves_no_room_for_the_text_is_refused(make):
    with pytest.raises(InvalidRequest, match=r"^candidate_labels: got '20 tokens', allowed: at most 12, so that text_input"):
        prepare(make(), ["a"], ["b " * 20], hypothesis_template="{}")


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]])
def test_an_empty_or_missing_text_is_refused(make, texts):
    with pytest.raises(InvalidRequest, match=r"^text_input: got"):
        prepare(make(), texts, candidate_labels="good")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_labels_share_the_probability_of_entailment(make):
    tensors = answer(prepare(make(), ["a film"], ["x", "y", "z"]), [7, 0, 0], [0, 8, math.log(2)], [0, 0, 0])
    assert tensors["scores"].tolist() == [[0.25, 0.5, 0.25]]
    assert (tensors["label"].tolist(), tensors["score"].tolist()) == ([[b"y"]], [[0.5]])
    shown = result(tensors)
    assert (shown["sequence"], shown["labels"][0], shown["scores"]) == ("a film", "y", [0.5, 0.25, 0.25])
    assert set(shown["labels"]) == {"x", "y", "z"}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "label": np.object_,
        "score": np.float32,
        "scores": np.float32,
        "result": np.object_,
    }


def test_with_several_labels_allowed_each_is_weighed_against_its_contradiction(make):
    prepared = prepare(make(), ["a"], ["x", "y"], multi_label="true")
    tensors = answer(prepared, [0, 99, math.log(3)], [0, 99, 0])
    assert tensors["scores"][0] == pytest.approx([0.75, 0.5])


def test_a_single_label_is_weighed_against_its_contradiction(make):
    assert answer(prepare(make(), ["a"], ["x"]), [0, 99, math.log(3)])["scores"][0] == pytest.approx([0.75])


@pytest.mark.parametrize(
    ("labels", "entailment", "contradiction"),
    [
        (("contradiction", "neutral", "entailment"), 2, 0),
        (("ENTAILMENT", "neutral", "contradiction"), 0, 2),
        (("not_entailment", "Entails"), 1, 0),
        (("LABEL_0", "LABEL_1", "LABEL_2"), 2, 0),
    ],
)
def test_the_label_of_entailment_is_found_by_its_name(make, labels, entailment, contradiction):
    logits = [5.0] * len(labels)
    logits[entailment], logits[contradiction] = math.log(3), 0.0
    scores = answer(prepare(make(labels=labels), ["a"], ["x"]), logits)["scores"]
    assert scores[0] == pytest.approx([0.75])


def test_every_row_is_answered_with_its_own_labels(make):
    prepared = prepare(make(), ["a", "b"], ["x", "y", "v", "w"])
    tensors = answer(prepared, [0, 0, 9], [0, 0, 0], [0, 0, 0], [0, 0, 9])
    assert tensors["label"].tolist() == [[b"x"], [b"w"]]
    assert [result(tensors, row)["sequence"] for row in (0, 1)] == ["a", "b"]
    assert [result(tensors, row)["labels"] for row in (0, 1)] == [["x", "y"], ["w", "v"]]
    assert tensors["scores"].shape == (2, 2)


def test_the_logits_of_windows_are_averaged(make):
    prepared = prepare(make(), ["a b c d e f g h " * 2], ["x", "y"], hypothesis_template="this is {}")
    one, two = ([0, 0, 0], [0, 0, 4]), ([0, 0, 1], [0, 0, 3])
    assert answer(prepared, *one, *two)["scores"].tolist() == [[0.5, 0.5]]


def test_huge_logits_are_no_trouble(make):
    scores = answer(prepare(make(), ["a"], ["x", "y"]), [0, 0, 1000], [0, 0, -1000])["scores"]
    assert scores.tolist() == [[1, 0]]


def test_labels_beyond_ascii_come_back_as_they_were(make):
    tensors = answer(prepare(make(), ["a"], ["茶👍", "e\u0301"]), [0, 0, 9], [0, 0, 0])
    assert tensors["label"][0, 0].decode() == "茶👍"
    assert result(tensors)["labels"] == ["茶👍", "e\u0301"]


@pytest.mark.parametrize(("encoder", "field"), [({"labels": ("one",)}, "labels"), ({"output": "token"}, "output")])
def test_a_model_that_cannot_judge_hypotheses_is_refused(make, encoder, field):
    with pytest.raises(ManifestError, match=rf"^encoder\.{field}: got "):
        make(**encoder)
