"""Extractive question answering, judged as SQuAD does: exact match and F1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderRequest, Outputs, Scalar
from fastserve.tools.evaluation.answer_scores import answer_scores
from fastserve.tools.evaluation.evaluation_task import Difference, Report
from fastserve.tools.evaluation.squad import Question

_MAY_BE_IMPOSSIBLE = "handle_impossible_answer"


@dataclasses.dataclass(frozen=True, slots=True)
class BestAnswer:
    """``text`` is empty when the model finds no answer in the context. ``score``: its probability."""

    text: str
    score: float


class QuestionAnswering:
    """An :class:`~fastserve.tools.evaluation.evaluation_task.EvaluationTask`.

    When the dataset has questions without an answer, the model may say so, unless ``parameters`` forbid it.
    """

    item_name = "questions"

    def __init__(self, questions: Sequence[Question], parameters: Mapping[str, Scalar]) -> None:
        self._questions = questions
        self.places = [question.place for question in questions]
        impossible = any(not question.answers for question in questions)
        sent = {_MAY_BE_IMPOSSIBLE: True, **parameters} if impossible else parameters
        self.requests = [
            (EncoderRequest({"question": each.question, "context": each.context}, parameters=sent),) for each in questions
        ]

    def prediction(self, index: int, answers: Sequence[Outputs]) -> BestAnswer:
        (outputs,) = answers
        try:
            return BestAnswer(str(outputs["answer"][0]), float(outputs["score"][0]))
        except (KeyError, IndexError):
            raise RequestFailed("INTERNAL", f"not the answer of a question answering model: {sorted(outputs)}") from None

    def difference(self, one: BestAnswer, other: BestAnswer) -> Difference:
        return Difference(one.text != other.text, abs(one.score - other.score))

    def is_numeric(self, predictions: Sequence[BestAnswer]) -> bool:
        return False

    def report(self, predictions: Sequence[BestAnswer]) -> Report:
        """Percentages, as SQuAD's own script gives them."""
        judged = [
            (bool(question.answers), *answer_scores(said.text, question.answers))
            for question, said in zip(self._questions, predictions, strict=True)
        ]
        metrics = _percentages("", judged)
        answerable = [each for each in judged if each[0]]
        if len(answerable) < len(judged):
            metrics |= _percentages(", answer there", answerable)
            metrics |= _percentages(", no answer there", [each for each in judged if not each[0]])
        answers = {question.question_id: said.text for question, said in zip(self._questions, predictions, strict=True)}
        counts = {"with_answer": len(answerable), "without_answer": len(judged) - len(answerable)}
        return Report(metrics, details={**counts, "answers": answers})


def _percentages(suffix: str, judged: Sequence[tuple[bool, float, float]]) -> dict[str, float]:
    if not judged:
        return {}
    return {
        f"exact match{suffix}": 100 * sum(exact for _, exact, _ in judged) / len(judged),
        f"F1{suffix}": 100 * sum(overlap for _, _, overlap in judged) / len(judged),
    }
