"""SQuAD's JSON and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastserve.errors import ToolError
from fastserve.tools.evaluation.answer_scores import answer_scores, normalised
from fastserve.tools.evaluation.squad import flat_question, squad_questions

PATH = Path("dev.json")


def official(*questions: dict[str, Any], context: str = "In 1815 Ada was born.") -> dict[str, Any]:
    return {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_questions_of_version_one_and_two_have_their_contexts_and_answers() -> None:
    answered = {"id": "a", "question": "When?", "answers": [{"text": "1815", "answer_start": 3}, {"text": "In 1815"}]}
    impossible = {"id": "b", "question": "Where?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "Ada"}]}
    first, second = squad_questions(PATH, official(answered, impossible))
    assert (first.question_id, first.question, first.context) == ("a", "When?", "In 1815 Ada was born.")
    assert (first.answers, second.answers) == (("1815", "In 1815"), ())
    assert first.place == "dev.json: data[0].paragraphs[0].qas[0]"


@pytest.mark.parametrize("answers", [{"text": ["1815"], "answer_start": [3]}, [{"text": "1815"}], ["1815"]])
def test_the_flat_form_of_the_datasets_library_is_read_too(answers: Any) -> None:
    element = {"id": "a", "context": "c", "question": "q", "answers": answers}
    (question,) = squad_questions(PATH, {"version": 2, "data": [element]})
    assert question.answers == ("1815",)
    assert flat_question(PATH, element, "line 7").place == "dev.json: line 7"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "dev.json: data: missing; is it SQuAD's JSON"),
        ([1], "dev.json: data: missing"),
        ({"data": [{"paragraphs": 1}]}, r"data\[0\].paragraphs: got 1, allowed: a list"),
        (official({"id": "a"}), r"data\[0\].paragraphs\[0\].qas\[0\].question: missing"),
        (official({"question": "q", "answers": [{"text": 1}]}), r"qas\[0\].answers\[0\]: got 1, allowed: text"),
        (official({"question": "q", "answers": "1815"}), r"qas\[0\].answers: got '1815', allowed: a list of answers"),
        ({"data": []}, "no questions in it"),
        ({"data": ["x"]}, r"data\[0\].paragraphs: missing"),
    ],
)
def test_what_is_missing_is_named_by_its_path(value: Any, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        squad_questions(PATH, value)


def test_texts_are_compared_without_case_articles_punctuation_and_blanks() -> None:
    assert normalised("  The Tower's  (an)   Answer! ") == "towers answer"
    assert normalised("another theory") == "another theory"
    assert answer_scores("The Eiffel-Tower.", ["eiffeltower"])[0] == 1
    assert answer_scores("Eiffel", ["Paris", "the eiffel"])[0] == 1
    assert answer_scores("Eiffel Tower", ["Eiffel"])[0] == 0


def test_f1_is_the_overlap_of_words_with_the_best_right_answer() -> None:
    assert answer_scores("the tall Eiffel Tower", ["Eiffel Tower in Paris", "London"])[1] == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )
    assert answer_scores("Eiffel Tower", ["Rome", "eiffel tower"])[1] == 1
    assert answer_scores("a b b", ["b b b c"])[1] == pytest.approx(2 * 1 * 0.5 / 1.5)  # a word counts as often as both have it
    assert answer_scores("Rome", ["Paris"])[1] == 0


def test_without_an_answer_only_the_empty_text_is_right() -> None:
    assert answer_scores("", []) == (1, 1)
    assert answer_scores("Paris", []) == (0, 0)
    assert (answer_scores("", ["Paris"])[0], answer_scores("", ["Paris"])[1]) == (0, 0)
    assert answer_scores("", ["the"])[0] == 1  # nothing is left of it
