"""Entities judged on words: which token speaks for a word, and what the reports say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastserve.tools.client import RequestFailed
from fastserve.tools.evaluation.token_classification import TaggedSentence, TokenClassification, WordTags
from fastserve.tools.evaluation.word_alignment import first_tokens, joined
from tests.encoder_client_double import labelled_tokens

SENTENCES = [
    TaggedSentence("t:1", ("Ada", "Lovelace", "lived", "in", "London"), ("B-PER", "I-PER", "O", "O", "B-LOC")),
    TaggedSentence("t:7", ("Nobody", "\u200b", "here"), ("O", "O", "O")),
]


def tagged(*tags: str) -> WordTags:
    return WordTags(tags, (1.0,) * len(tags), 0)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([(0, 2), (2, 3), (4, 6), (7, 8)], [0, 2, 3]),  # pieces: the first speaks
        ([(0, 0), (0, 3), (3, 6), (6, 8), (8, 8)], [1, 2, 3]),  # special tokens; offsets with the blank before the word
        ([(0, 3), (7, 8)], [0, None, 1]),  # a word without a token
        ([(0, 6), (7, 8)], [0, None, 1]),  # a token over two words speaks for the first
        ([], [None, None, None]),
    ],
)
def test_a_words_token_is_the_first_with_characters_of_it(tokens: list[tuple[int, int]], expected: list[int | None]) -> None:
    text, spans = joined(["abc", "de", "f"])
    assert (text, spans) == ("abc de f", [(0, 3), (4, 6), (7, 8)])
    assert first_tokens(spans, tokens) == expected


def test_a_sentence_is_sent_as_words_with_blanks_and_every_token_is_asked_for() -> None:
    task = TokenClassification(SENTENCES, {"truncation": True, "aggregation_strategy": "simple"})
    ((request,), _) = task.requests
    assert request.texts == {"text_input": "Ada Lovelace lived in London"}
    assert request.parameters == {"truncation": True, "aggregation_strategy": "none", "ignore_labels": "[]"}
    assert task.places == ["t:1", "t:7"]


def test_a_word_has_the_label_of_its_first_piece_and_a_dropped_one_is_outside_and_counted() -> None:
    task = TokenClassification(SENTENCES, {})
    tags = {"Ada": "B-PER", "Lovelace": "I-PER"}
    pieces = {"Lovelace": ("Love", "lace"), "\u200b": ()}
    first = task.prediction(0, [labelled_tokens("Ada Lovelace lived in London", tags, pieces)])
    assert first == WordTags(("B-PER", "I-PER", "O", "O", "O"), (0.9,) * 5, 0)
    second = task.prediction(1, [labelled_tokens("Nobody \u200b here", {}, pieces)])
    assert (second.tags, second.scores, second.dropped) == (("O", "O", "O"), (0.9, 0.0, 0.9), 1)


def test_rows_that_fill_up_a_batch_are_no_tokens() -> None:
    outputs = {"label": ["B-PER", ""], "score": [0.9, 0.0], "start": [0, -1], "end": [3, -1]}
    assert TokenClassification([TaggedSentence("t:1", ("Ada",), ("O",))], {}).prediction(0, [outputs]).tags == ("B-PER",)


@pytest.mark.parametrize("outputs", [{"label": ["O"]}, {"label": ["O"], "score": [], "start": [0], "end": [1]}])
def test_an_answer_of_another_kind_is_refused(outputs: dict[str, list[object]]) -> None:
    with pytest.raises(RequestFailed, match="not the answer of a token classifier"):
        TokenClassification(SENTENCES, {}).prediction(0, [outputs])


def report(predictions: Sequence[WordTags]):
    return TokenClassification(SENTENCES, {}).report(predictions)


def test_entities_count_whole_and_tags_one_by_one() -> None:
    found = report([tagged("B-PER", "O", "O", "O", "B-LOC"), tagged("O", "O", "B-LOC")])
    # 2 entities are right: the person is cut short, the place is found, and one more place is not there
    assert found.metrics["precision"] == pytest.approx(1 / 3)
    assert found.metrics["recall"] == pytest.approx(1 / 2)
    assert found.metrics["F1"] == pytest.approx(0.4)
    assert (found.metrics["F1 PER"], found.metrics["F1 LOC"]) == (0, pytest.approx(2 / 3))
    assert found.metrics["accuracy of tags"] == pytest.approx(6 / 8)
    assert "micro avg" in found.texts["Entities (seqeval)"] and "B-PER" in found.texts["Tags (scikit-learn)"]
    assert found.details["entities"]["PER"]["support"] == 1
    assert found.details["tags"]["O"]["recall"] == pytest.approx(4 / 5)


def test_a_perfect_model_has_one_everywhere() -> None:
    found = report([tagged(*sentence.tags) for sentence in SENTENCES])
    assert set(found.metrics.values()) == {1.0} and found.notes == ()


def test_no_entities_at_all_is_no_error() -> None:
    task = TokenClassification(SENTENCES[1:], {})
    found = task.report([tagged("O", "O", "O")])
    assert (found.metrics["F1"], found.metrics["accuracy of tags"]) == (0.0, 1.0)


def test_dropped_words_and_foreign_tags_are_noted() -> None:
    found = report([WordTags(("B-person",) * 5, (1.0,) * 5, 2), tagged("O", "O", "O")])
    dropped, foreign = found.notes
    assert dropped.startswith("2 of 8 words have no token") and found.details["dropped_words"] == 2
    assert "B-LOC, B-PER" in foreign and "B-person" in foreign


def test_two_predictions_differ_in_their_tags_or_in_their_scores() -> None:
    task = TokenClassification(SENTENCES, {})
    one, other = WordTags(("O", "B-PER"), (0.5, 0.9), 0), WordTags(("O", "B-LOC"), (0.5, 0.7), 0)
    assert (task.difference(one, one).answers, task.difference(one, one).score) == (False, 0)
    assert task.difference(one, other).answers is True
    assert task.difference(one, other).score == pytest.approx(0.2)
    assert task.is_numeric([one]) is False
