"""Texts, questions and pairs: predictions from answers, reports from predictions."""

from __future__ import annotations

import json
import math

import pytest

from fastserve.errors import ToolError
from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderRequest
from fastserve.tools.evaluation.correlation import correlations
from fastserve.tools.evaluation.question_answering import BestAnswer, QuestionAnswering
from fastserve.tools.evaluation.sentence_pairs import SentencePair, SentencePairs
from fastserve.tools.evaluation.squad import Question
from fastserve.tools.evaluation.text_classification import LabelledText, LabelScores, TextClassification
from tests.encoder_client_double import ranked


def classification(*labels: str, names: tuple[str, ...] = ()) -> TextClassification:
    texts = [LabelledText(f"t:{line}", EncoderRequest({"text_input": "x"}), label) for line, label in enumerate(labels, start=2)]
    return TextClassification(texts, names)


def said(label: str, *others: str) -> LabelScores:
    return LabelScores(label, {label: 0.75, **dict.fromkeys(others, 0.25)})


# --- text classification ----------------------------------------------------------------------------------------------


def test_the_prediction_is_the_best_label_with_the_scores_of_all() -> None:
    prediction = classification("a").prediction(0, [ranked({"a": 0.2, "b": 0.8})])
    assert prediction == LabelScores("b", {"b": 0.8, "a": 0.2})


def test_a_zero_shot_answer_is_read_too() -> None:
    result = {"sequence": "x", "labels": ["food", "travel"], "scores": [0.9, 0.1]}
    assert classification("food").prediction(0, [{"result": [json.dumps(result)]}]).label == "food"


@pytest.mark.parametrize("outputs", [{"result": ["[]"]}, {"result": ['[{"score": 1}]']}, {"result": ["?"]}, {"label": ["a"]}])
def test_what_is_no_classification_is_refused(outputs: dict[str, list[str]]) -> None:
    with pytest.raises(RequestFailed, match=r"not the answer of a text classifier|is no JSON"):
        classification("a").prediction(0, [outputs])


def test_the_report_counts_classes() -> None:
    found = classification("a", "a", "a", "b").report([said("a", "b"), said("a", "b"), said("b", "a"), said("b", "a")])
    assert found.metrics["accuracy"] == found.metrics["micro F1"] == 0.75
    assert found.metrics["F1 a"] == pytest.approx(0.8)
    assert found.metrics["macro F1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.details["classes"]["b"]["support"] == 1
    assert "macro avg" in found.texts["Classes (scikit-learn)"]


def test_numbers_in_the_dataset_are_the_models_numbered_labels() -> None:
    report = classification("1", "0").report([said("LABEL_1", "LABEL_0"), said("LABEL_1", "LABEL_0")])
    assert report.metrics["accuracy"] == 0.5


def test_numbers_in_the_dataset_may_be_given_names() -> None:
    task = classification("1", "good", names=("bad", "good"))
    assert task.report([said("good", "bad"), said("good", "bad")]).metrics["accuracy"] == 1
    with pytest.raises(ToolError, match=r"t:2: got '2', allowed: bad, good, or 0 to 1"):
        classification("2", names=("bad", "good")).report([said("good", "bad")])


def test_labels_the_model_does_not_know_are_an_error_that_says_what_helps() -> None:
    with pytest.raises(ToolError, match=r"\(0, 1\) is one of the model's \(bad, good\).*--labels"):
        classification("1", "0").report([said("good", "bad"), said("bad", "good")])


def test_a_model_with_one_output_is_judged_as_a_regression() -> None:
    task = classification("1.0", "2.0", "4.0")
    predictions = [LabelScores("LABEL_0", {"LABEL_0": value}, is_number=True) for value in (1.5, 2.5, 3.5)]
    assert task.is_numeric(predictions)
    found = task.report(predictions)
    assert found.metrics["Spearman"] == pytest.approx(1)
    assert found.metrics["Pearson"] == pytest.approx(0.98198, abs=1e-5)
    assert found.metrics["mean squared error"] == pytest.approx(0.25)
    for text in ("high", "nan", "-inf"):
        with pytest.raises(ToolError, match=rf"t:2: got '{text}', allowed: a number"):
            classification(text).report(predictions[:1])


def test_a_classifier_asked_for_its_best_label_only_is_no_regression() -> None:
    task = classification("a", "b")
    answer = {**ranked({"a": 0.9}), "scores": [0.9, 0.1]}
    predictions = [task.prediction(index, [answer]) for index in range(2)]
    assert not task.is_numeric(predictions)
    assert task.report(predictions).metrics["accuracy"] == 0.5


def test_a_text_with_one_candidate_label_is_no_regression() -> None:
    task = classification("food")
    result = {"sequence": "x", "labels": ["food"], "scores": [0.9]}
    assert not task.is_numeric([task.prediction(0, [{"result": [json.dumps(result)]}])])


def test_classifications_differ_in_the_label_or_in_a_score() -> None:
    task, one = classification("a"), LabelScores("a", {"a": 0.6, "b": 0.4})
    difference = task.difference(one, LabelScores("b", {"b": 0.7, "a": 0.3}))
    assert difference.answers and difference.score == pytest.approx(0.3)
    assert not task.difference(one, one).answers


# --- question answering -----------------------------------------------------------------------------------------------


def questions(*answers: tuple[str, ...]) -> QuestionAnswering:
    return QuestionAnswering([Question(f"q{i}", str(i), "Who?", "Ada.", right) for i, right in enumerate(answers)], {"top_k": 2})


def test_only_a_dataset_with_impossible_questions_lets_the_model_refuse() -> None:
    assert questions(("Ada",)).requests[0][0].parameters == {"top_k": 2}
    request = questions(("Ada",), ()).requests[0][0]
    assert request.parameters == {"handle_impossible_answer": True, "top_k": 2}
    assert request.texts == {"question": "Who?", "context": "Ada."}


def test_questions_are_scored_in_percent_and_apart_where_some_have_no_answer() -> None:
    task = questions(("Ada Lovelace",), ("Paris",), (), ())
    found = task.report([BestAnswer(text, 0.5) for text in ("ada", "Paris", "", "Rome")])
    assert found.metrics["exact match"] == pytest.approx(50)
    assert found.metrics["F1"] == pytest.approx(100 * (2 / 3 + 1 + 1 + 0) / 4)
    assert found.metrics["exact match, answer there"] == pytest.approx(50)
    assert found.metrics["F1, no answer there"] == pytest.approx(50)
    assert found.details["answers"] == {"0": "ada", "1": "Paris", "2": "", "3": "Rome"}
    assert set(questions(("Paris",)).report([BestAnswer("Paris", 1)]).metrics) == {"exact match", "F1"}


def test_an_answer_is_the_first_of_the_best() -> None:
    task = questions(("Ada",))
    outputs = {"answer": ["Ada", "Ada."], "score": [0.5, 0.1], "start": [0, 0], "end": [3, 4]}
    assert task.prediction(0, [outputs]) == BestAnswer("Ada", 0.5)
    assert task.difference(BestAnswer("Ada", 0.5), BestAnswer("ada", 0.4)).answers
    with pytest.raises(RequestFailed, match="not the answer of a question answering model"):
        task.prediction(0, [{"answer": []}])


# --- sentence pairs ---------------------------------------------------------------------------------------------------


def test_two_sentences_are_as_similar_as_the_cosine_of_their_embeddings() -> None:
    task = SentencePairs([SentencePair("t:2", "a", "b", 5.0), SentencePair("t:3", "c", "d", 1.0)], {"normalize": False})
    assert [request.texts["text_input"] for request in task.requests[1]] == ["c", "d"]
    assert task.prediction(0, [{"embedding": [3.0, 4.0]}, {"embedding": [4.0, 3.0]}]) == pytest.approx(0.96)
    assert task.prediction(0, [{"embedding": [0.0, 0.0]}, {"embedding": [4.0, 3.0]}]) == 0
    assert task.report([0.9, -0.2]).metrics["Spearman"] == pytest.approx(1)
    assert task.report([-0.2, 0.9]).metrics["Spearman"] == pytest.approx(-1)
    assert task.is_numeric([0.9]) and task.difference(0.9, 0.5).score == pytest.approx(0.4)
    with pytest.raises(RequestFailed, match="not the answers of an embedding model"):
        task.prediction(0, [{"label": ["x"]}, {"label": ["x"]}])


def test_what_does_not_vary_correlates_with_nothing() -> None:
    assert all(map(math.isnan, correlations([1.0, 2.0], [3.0, 3.0]).values()))
    assert all(map(math.isnan, correlations([1.0], [3.0]).values()))
    assert correlations([1, 2, 3], [1, 8, 27])["Spearman"] == pytest.approx(1)
