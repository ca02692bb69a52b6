"""Grouping of labelled tokens: rows by hand, and properties over random labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.tasks.entities import Entity, EntityReader, LabelledTokens

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
BIOES = ("O", *(f"{prefix}-{name}" for name in ("PER", "LOC") for prefix in "BIES"))
BILOU = ("O", *(f"{prefix}-{name}" for name in ("PER", "LOC") for prefix in "BILU"))


def join(tokens: list[str]) -> str:
    return " ".join(tokens).replace(" ##", "")


def labelled(tokens: str, rows: list[list[float]]) -> LabelledTokens:
    """Tokens apart by spaces, each a character range of the same text without the marks."""
    texts, offsets, position = tokens.split(), [], 0
    for text in texts:
        position += not text.startswith("##") and position > 0
        offsets.append((position, position + len(text.removeprefix("##"))))
        position = offsets[-1][1]
    continues = [text.startswith("##") for text in texts]
    return LabelledTokens(texts, offsets, range(1, len(texts) + 1), continues, np.array(rows, np.float32))


def certain(labels: tuple[str, ...], names: str) -> list[list[float]]:
    """Rows that give each label of ``names`` half of the probability, and the others the rest."""
    rest = 0.5 / (len(labels) - 1)
    return [[0.5 if label == name else rest for label in labels] for name in names.split()]


def groups(labels: tuple[str, ...], tokens: str, names: str, strategy: str = "simple") -> list[tuple[str, str]]:
    entities = EntityReader(labels, join).read(labelled(tokens, certain(labels, names)), strategy, ["O"])
    return [(entity.label, entity.word) for entity in entities]


def test_neighbours_of_one_type_are_joined_and_the_rest_is_ignored():
    assert groups(IOB, "Ada Love ##lace in New York", "B-PER I-PER I-PER O B-LOC I-LOC") == [
        ("PER", "Ada Lovelace"),
        ("LOC", "New York"),
    ]


def test_a_begin_parts_two_entities_of_one_type():
    assert groups(IOB, "Ada Bob Eve", "B-PER B-PER I-PER") == [("PER", "Ada"), ("PER", "Bob Eve")]


def test_iob1_begins_an_entity_without_a_begin_label():
    assert groups(IOB, "a Ada Love Bob York", "O I-PER I-PER B-PER I-LOC") == [
        ("PER", "Ada Love"),
        ("PER", "Bob"),
        ("LOC", "York"),
    ]


@pytest.mark.parametrize(("labels", "end", "single"), [(BIOES, "E", "S"), (BILOU, "L", "U")])
def test_an_end_or_a_single_parts_two_entities_of_one_type(labels, end, single):
    names = f"B-PER {end}-PER I-PER {end}-PER {single}-PER {single}-PER I-PER"
    assert groups(labels, "a b c d e f g", names) == [
        ("PER", "a b"),
        ("PER", "c d"),
        ("PER", "e"),
        ("PER", "f"),
        ("PER", "g"),
    ]


def test_an_end_without_its_begin_is_an_entity():
    assert groups(BIOES, "a b c", "E-PER O E-LOC") == [("PER", "a"), ("LOC", "c")]


def test_a_dash_is_a_part_of_a_name_when_the_labels_have_no_such_prefix():
    labels = ("O", "E-mail", "S-train", "U-boat")
    # "E-mail E-mail" would be two entities if E- meant an end. The pipeline shows what follows the first dash.
    assert groups(labels, "a b c d e", "E-mail E-mail S-train U-boat U-boat") == [
        ("mail", "a b"),
        ("train", "c"),
        ("boat", "d e"),
    ]


def test_every_token_is_shown_with_its_whole_label_when_nothing_is_joined():
    tokens = labelled("Ada Love ##lace ran", certain(IOB, "B-PER I-PER I-PER O"))
    entities = EntityReader(IOB, join).read(tokens, "none", ["O"])
    assert entities == [
        Entity("B-PER", 0.5, "Ada", 0, 3, 1),
        Entity("I-PER", 0.5, "Love", 4, 8, 2),
        Entity("I-PER", 0.5, "##lace", 8, 12, 3),
    ]


def test_ignored_labels_are_types_when_tokens_are_joined_and_labels_when_not():
    tokens = labelled("Ada in York", certain(IOB, "B-PER O B-LOC"))
    reader = EntityReader(IOB, join)
    assert [entity.label for entity in reader.read(tokens, "simple", ["PER", "B-LOC"])] == ["O", "LOC"]
    assert [entity.label for entity in reader.read(tokens, "none", ["PER", "B-LOC"])] == ["B-PER", "O"]


@pytest.mark.parametrize(
    ("strategy", "entity", "score"),
    [
        ("simple", [("PER", "Micro"), ("LOC", "##soft")], [0.6, 0.9]),
        ("first", [("PER", "Microsoft")], [0.6]),
        ("max", [("LOC", "Microsoft")], [0.9]),
        ("average", [("LOC", "Microsoft")], [0.5]),
    ],
)
def test_a_word_takes_the_label_its_strategy_says(strategy, entity, score):
    rows = [[0.3, 0.6, 0.0, 0.1, 0.0], [0.05, 0.05, 0.0, 0.9, 0.0]]
    found = EntityReader(IOB, join).read(labelled("Micro ##soft", rows), strategy, ["O"])
    assert [(entity.label, entity.word) for entity in found] == entity
    assert [entity.score for entity in found] == pytest.approx(score)


def test_of_equally_sure_tokens_the_first_gives_a_word_its_label():
    found = EntityReader(IOB, join).read(labelled("Micro ##soft", certain(IOB, "B-LOC B-PER")), "max", ["O"])
    assert [entity.label for entity in found] == ["LOC"]


def test_the_score_of_an_entity_is_the_mean_of_its_pieces():
    rows = [[0.2, 0.8, 0, 0, 0], [0.6, 0, 0.4, 0, 0], [0.1, 0, 0.9, 0, 0]]
    tokens = labelled("Ada Love ##lace", rows)
    (entity,) = EntityReader(IOB, join).read(tokens, "max", ["O"])
    assert entity.score == pytest.approx((0.8 + 0.9) / 2)
    assert (entity.start, entity.end) == (0, 12)


def test_a_text_may_begin_inside_a_word():
    assert groups(IOB, "##lace York", "I-PER I-LOC", "first") == [("PER", "##lace"), ("LOC", "York")]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_a_text_without_tokens_has_no_entities(strategy):
    assert EntityReader(IOB, join).read(labelled("", np.zeros((0, 5)).tolist()), strategy, ["O"]) == []


# --- properties -------------------------------------------------------------------------------------------------------


@st.composite
def sentences(draw: st.DrawFn, labels: tuple[str, ...]) -> LabelledTokens:
    number = draw(st.integers(1, 12))
    tokens = [draw(st.sampled_from(["ab", "##c"])) for _ in range(number)]
    rows = [[draw(st.integers(1, 9)) for _ in labels] for _ in range(number)]
    return labelled(" ".join(tokens), (np.array(rows) / np.sum(rows, axis=1, keepdims=True)).tolist())


@given(sentences(BIOES), st.sampled_from(["simple", "first", "average", "max"]))
def test_entities_of_all_types_cover_the_text_without_gap_or_overlap(tokens, strategy):
    found = EntityReader(BIOES, join).read(tokens, strategy, [])
    starts = [start for start, _ in tokens.offsets]
    assert found[0].start == 0
    assert found[-1].end == tokens.offsets[-1][1]
    for left, right in itertools.pairwise(found):
        assert starts.index(right.start) > 0
        assert left.end == tokens.offsets[starts.index(right.start) - 1][1]
    if strategy != "simple":  # words are never cut
        assert all(not tokens.continues[starts.index(entity.start)] for entity in found[1:])


@given(sentences(BIOES))
def test_entities_end_where_a_reading_from_left_to_right_ends_them(tokens):
    ends, open_type, closed = [], None, True
    for column, (start, end) in zip(tokens.probabilities.argmax(axis=1), tokens.offsets, strict=True):
        prefix, _, name = BIOES[column].rpartition("-")
        if closed or prefix in ("B", "S") or name != open_type:
            ends.append([name, start, end])
        ends[-1][2] = end
        open_type, closed = name, prefix in ("E", "S")
    found = EntityReader(BIOES, join).read(tokens, "simple", [])
    assert [[entity.label, entity.start, entity.end] for entity in found] == ends
