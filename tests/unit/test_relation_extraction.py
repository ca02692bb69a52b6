"""Relation extraction: markers around head and tail, and the part of a long text that has both."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastserve.errors import InvalidRequest, ManifestError, RequestTooLong
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.relation_extraction import RelationExtraction
from tests.encoder_doubles import IDS, MARKERS, encoder_manifest, loaded, word_level

LABELS = ("no_relation", "born_in")
LENGTH = 16
MARKED = "the [E1]film[/E1] is [E2]good[/E2] ."


@pytest.fixture
def make(tmp_path):
    def make(**encoder):
        settings = {"labels": LABELS, "markers": MARKERS, "max_length": LENGTH} | encoder
        return RelationExtraction(encoder_manifest("relation-extraction", **settings), loaded(word_level(), tmp_path))

    return make


def prepare(task, texts, heads=None, tails=None, **parameters):
    spans = {name: value for name, value in (("head", heads), ("tail", tails)) if value is not None}
    return task.prepare(EncodingInput({"text_input": texts}, spans, parameters), 0, 0.0)


def words(prepared, row=0):
    names = {token_id: word for word, token_id in IDS.items()}
    return " ".join(names[token_id] for token_id in prepared.request.sequences[row].token_ids[1:-1])


def span(text, word):
    """Where the first ``word`` stands."""
    start = text.index(word)
    return start, start + len(word)


def test_markers_are_put_around_head_and_tail(make):
    text = "the film is good ."
    prepared = prepare(make(), [text], [span(text, "film")], [span(text, "good")])
    assert words(prepared) == "the [E1] film [/E1] is [E2] good [/E2] ."
    prepared = prepare(make(), [text], [span(text, "good")], [span(text, "film")])
    assert words(prepared) == "the [E2] film [/E2] is [E1] good [/E1] ."


def test_a_text_may_bring_its_markers(make):
    assert words(prepare(make(), [MARKED])) == "the [E1] film [/E1] is [E2] good [/E2] ."
    assert words(prepare(make(), ["[E2]a[/E2] b [E1]c[/E1]"])) == "[E2] a [/E2] b [E1] c [/E1]"


def test_spans_may_touch_each_other_and_the_ends_of_the_text(make):
    assert words(prepare(make(), ["a b"], [(0, 2)], [(2, 3)])) == "[E1] a [/E1] [E2] b [/E2]"


def test_spans_count_characters_whatever_their_bytes(make):
    text = "👩‍👧 é e\u0301 a is b"
    prepared = prepare(make(), [text], [span(text, "a")], [span(text, "b")])
    assert words(prepared).endswith("[E1] a [/E1] is [E2] b [/E2]")


def test_every_row_of_a_batch_has_spans_of_its_own(make):
    prepared = prepare(make(), ["a b", "a b"], [(0, 1), (2, 3)], [(2, 3), (0, 1)])
    assert words(prepared, 0) == "[E1] a [/E1] [E2] b [/E2]"
    assert words(prepared, 1) == "[E2] a [/E2] [E1] b [/E1]"


def test_spaces_of_a_marker_are_put_in_with_it_but_not_needed_in_a_marked_text(make):
    task = make(markers=("[E1] ", " [/E1]", "[E2] ", " [/E2]"))
    assert words(prepare(task, ["ab"], [(0, 1)], [(1, 2)])) == "[E1] a [/E1] [E2] b [/E2]"
    assert words(prepare(task, [MARKED])) == words(prepare(make(), [MARKED]))


def test_markers_may_be_words(make):
    task = make(markers=("e", "f", "g", "h"))
    assert words(prepare(task, ["e a f b g c h"])) == "e a f b g c h"
    assert words(prepare(task, ["a b"], [(0, 1)], [(2, 3)])) == "[UNK] [UNK]"


# --- long texts -------------------------------------------------------------------------------------------------------


def long_text(before, between, after):
    """Words d before, between and after the two entities."""
    return " ".join(["d"] * before + ["[E1] a [/E1]"] + ["e"] * between + ["[E2] b [/E2]"] + ["f"] * after)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((30, 1, 30), "d d d [E1] a [/E1] e [E2] b [/E2] f f f f"),
        ((0, 1, 30), "[E1] a [/E1] e [E2] b [/E2] f f f f f f f"),
        ((30, 1, 0), "d d d d d d d [E1] a [/E1] e [E2] b [/E2]"),
        ((30, 1, 2), "d d d d d [E1] a [/E1] e [E2] b [/E2] f f"),
        ((5, 8, 5), "[E1] a [/E1] e e e e e e e e [E2] b [/E2]"),
        ((3, 2, 3), "d d d [E1] a [/E1] e e [E2] b [/E2] f f f"),
    ],
)
def test_of_a_long_text_the_window_around_both_is_run(make, counts, shown):
    assert words(prepare(make(), [long_text(*counts)])) == shown


def test_words_that_touch_a_marker_are_outside_of_it(make):
    inside = "[E1]a[/E1] e e e e e e e e [E2]b[/E2]"
    assert words(prepare(make(), [f"d d{inside}f f"])) == words(prepare(make(), [inside]))


def test_the_window_is_around_the_spans_too(make):
    text = "d " * 50 + "a e b" + " f" * 50
    prepared = prepare(make(), [text], [span(text, "b")], [span(text, "a")])
    assert words(prepared) == "d d d [E2] a [/E2] e [E1] b [/E1] f f f f"


@pytest.mark.parametrize("truncation", [False, True])
def test_entities_too_far_apart_for_one_window_are_refused(make, truncation):
    with pytest.raises(
        RequestTooLong, match=r"^text_input: got '15 tokens', allowed: at most 14 from the first marker to the last"
    ):
        prepare(make(), [long_text(5, 9, 5)], truncation=truncation)


def test_truncation_keeps_the_beginning_when_it_has_both(make):
    assert words(prepare(make(), [long_text(2, 1, 30)], truncation=True)) == "d d [E1] a [/E1] e [E2] b [/E2] f f f f f"


def test_truncation_that_would_lose_a_marker_is_refused(make):
    prepare(make(), [long_text(7, 1, 9)], truncation=True)
    with pytest.raises(InvalidRequest, match=r"^truncation: got True, allowed: false, because the markers end beyond"):
        prepare(make(), [long_text(8, 1, 9)], truncation=True)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "tail", "field"),
    [
        ((0, 1), (0, 1), "tail"),
        ((0, 4), (2, 6), "tail"),
        ((2, 6), (0, 4), "tail"),
        ((0, 6), (2, 4), "tail"),
        ((2, 4), (0, 6), "tail"),
        ((2, 2), (0, 1), "head"),
        ((0, 1), (5, 4), "tail"),
        ((-1, 1), (2, 4), "head"),
        ((0, 1), (2, 8), "tail"),
        ((7, 8), (0, 1), "head"),
        ((100, 101), (0, 1), "head"),
    ],
)
def test_spans_that_overlap_or_are_empty_or_outside_are_refused(make, head, tail, field):
    with pytest.raises(InvalidRequest) as caught:
        prepare(make(), ["a b c d"], [head], [tail])
    assert caught.value.field == field


def test_one_span_alone_is_refused(make):
    with pytest.raises(InvalidRequest, match=r"^tail: got None, allowed: a span, because the other one is given"):
        prepare(make(), ["a b"], heads=[(0, 1)])
    with pytest.raises(InvalidRequest, match=r"^head: got None"):
        prepare(make(), ["a b"], tails=[(0, 1)])


@pytest.mark.parametrize(
    "text",
    [
        "the film is good",
        "[E1]a[/E1] b",
        "[E1]a[/E1] [E2]b",
        "[/E1]a[E1] [E2]b[/E2]",
        "[E1]a[E2]b[/E1]c[/E2]",
        "[E1]a[E2]b[/E2]c[/E1]",
        "[E1]a[/E1] [E2]b[/E2] [E1]",
        "[E1]a[/E1] [/E1] [E2]b[/E2]",
    ],
)
def test_a_text_without_spans_needs_each_marker_once_and_in_order(make, text):
    with pytest.raises(InvalidRequest, match=r"^text_input: got .*, allowed: head and tail, or each marker once: \[E1\] \[/E1\]"):
        prepare(make(), [text])


def test_markers_in_the_text_beside_spans_are_refused(make):
    with pytest.raises(InvalidRequest, match=r"^text_input: got .*, allowed: a text without markers beside head and tail"):
        prepare(make(), [MARKED], [(0, 3)], [(20, 22)])


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_or_missing_text_is_refused(make, text):
    with pytest.raises(InvalidRequest, match=r"^text_input: got"):
        prepare(make(), [] if text is None else [text], [(0, 1)], [(2, 3)])


@pytest.mark.parametrize(
    "markers", [(), MARKERS[:2], ("[E1]", "", "[E2]", "[/E2]"), ("[E1]", " ", "[E2]", "[/E2]"), ("e", "e", "f", "f")]
)
def test_a_model_without_four_markers_is_refused(make, markers):
    with pytest.raises(ManifestError, match=r"^encoder\.markers: got .*, allowed: four different ones"):
        make(markers=markers)


# --- the answer -------------------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_a_classifier(make):
    prepared = prepare(make(), [MARKED, MARKED], top_k=1)
    tensors = prepared.answer([np.array([0, 9], np.float32), np.array([9, 0], np.float32)])
    assert tensors["label"].tolist() == [[b"born_in"], [b"no_relation"]]
    assert tensors["scores"].shape == (2, 2)
    assert [len(json.loads(value)) for value in tensors["result"][:, 0]] == [1, 1]
