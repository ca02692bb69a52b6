"""One label (or one number) a text or pair of texts: classification, relation extraction, zero-shot, regression."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastserve.errors import ToolError
from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderRequest, Outputs, result_of
from fastserve.tools.evaluation.correlation import correlations, finite_number
from fastserve.tools.evaluation.data_file import quoted
from fastserve.tools.evaluation.evaluation_task import Difference, Report

_NUMBERED = re.compile(r"LABEL_\d+")
_DIGITS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledText:
    """``label``: the right one as the dataset writes it."""

    place: str
    request: EncoderRequest
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class LabelScores:
    """``label``: the best one; ``scores``: of each label the answer names. ``is_number``: the model has one output only, so that
    its score is the value of a regression."""

    label: str
    scores: Mapping[str, float]
    is_number: bool = False


class TextClassification:
    """An :class:`~fastserve.tools.evaluation.evaluation_task.EvaluationTask`.

    A model with one output only is judged as a regression. ``labels``: names of the dataset's labels 0, 1, ..., for datasets
    that number what the model names.
    """

    item_name = "texts"

    def __init__(self, texts: Sequence[LabelledText], labels: Sequence[str] = ()) -> None:
        self._texts = texts
        self._labels = labels
        self.places = [text.place for text in texts]
        self.requests = [(text.request,) for text in texts]

    def prediction(self, index: int, answers: Sequence[Outputs]) -> LabelScores:
        result = result_of(answers[0])
        try:
            if isinstance(result, dict):  # zero-shot classification
                scores, columns = dict(zip(result["labels"], map(float, result["scores"]), strict=True)), None
            else:
                scores = {str(entry["label"]): float(entry["score"]) for entry in result}
                columns = len(answers[0].get("scores", scores))  # of all labels, however many were asked for
            return LabelScores(next(iter(scores)), scores, columns == 1)  # best first
        except (KeyError, TypeError, ValueError, StopIteration):
            raise RequestFailed("INTERNAL", f"not the answer of a text classifier: {quoted(result)}") from None

    def difference(self, one: LabelScores, other: LabelScores) -> Difference:
        shared = one.scores.keys() & other.scores.keys()
        distance = max((abs(one.scores[label] - other.scores[label]) for label in shared), default=0.0)
        return Difference(one.label != other.label, distance)

    def is_numeric(self, predictions: Sequence[LabelScores]) -> bool:
        return all(prediction.is_number for prediction in predictions)

    def report(self, predictions: Sequence[LabelScores]) -> Report:
        if self.is_numeric(predictions):
            values = [prediction.scores[prediction.label] for prediction in predictions]
            return _regression(list(self._right_values()), values)
        known = {label for prediction in predictions for label in prediction.scores}
        right = self._right_labels(known)
        return _classification(right, [prediction.label for prediction in predictions])

    def _right_values(self) -> Iterator[float]:
        for text in self._texts:
            try:
                yield finite_number(text.label)
            except ValueError:
                raise ToolError(f"{text.place}: got {quoted(text.label)}, allowed: a number; the model predicts one") from None

    def _right_labels(self, known: set[str]) -> list[str]:
        """The dataset's labels in the model's words."""
        given = [text.label for text in self._texts]
        if self._labels:
            return [self._named(text) for text in self._texts]
        if known & set(given):
            return given
        if all(map(str.isdecimal, given)) and all(map(_NUMBERED.fullmatch, known)):
            return [f"LABEL_{int(label)}" for label in given]
        raise ToolError(
            f"no label of the dataset ({_some(given)}) is one of the model's ({_some(known)}); if the dataset numbers them, "
            "name them in order: --labels NAME,NAME,..."
        )

    def _named(self, text: LabelledText) -> str:
        if text.label in self._labels:
            return text.label
        if text.label.isdecimal() and int(text.label) < len(self._labels):
            return self._labels[int(text.label)]
        names = ", ".join(self._labels)
        raise ToolError(f"{text.place}: got {quoted(text.label)}, allowed: {names}, or 0 to {len(self._labels) - 1}")


def _classification(right: Sequence[str], said: Sequence[str]) -> Report:
    from sklearn.metrics import accuracy_score, classification_report, f1_score

    numbers: dict[str, Any] = classification_report(right, said, output_dict=True, zero_division=0)
    metrics = {
        "accuracy": float(accuracy_score(right, said)),
        "micro F1": float(f1_score(right, said, average="micro", zero_division=0)),
        "macro F1": float(numbers["macro avg"]["f1-score"]),
    }
    metrics |= {f"F1 {label}": float(numbers[label]["f1-score"]) for label in sorted({*right, *said})}
    text = str(classification_report(right, said, digits=_DIGITS, zero_division=0))
    return Report(metrics, texts={"Classes (scikit-learn)": text}, details={"classes": numbers})


def _regression(right: Sequence[float], said: Sequence[float]) -> Report:
    squares = [(one - other) ** 2 for one, other in zip(right, said, strict=True)]
    return Report({**correlations(right, said), "mean squared error": sum(squares) / len(squares)})


def _some(labels: Sequence[str] | set[str]) -> str:
    distinct = sorted(set(labels))
    return ", ".join(distinct[:5]) + (", ..." if len(distinct) > 5 else "")
