"""Semantic textual similarity: the cosine of two sentences' embeddings against the similarity people gave."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence

from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderRequest, Outputs, Scalar
from fastserve.tools.evaluation.correlation import correlations
from fastserve.tools.evaluation.evaluation_task import Difference, Report


@dataclasses.dataclass(frozen=True, slots=True)
class SentencePair:
    place: str
    first: str
    second: str
    similarity: float
    """On any scale; only how it grows counts."""


class SentencePairs:
    """An :class:`~fastserve.tools.evaluation.evaluation_task.EvaluationTask`; a prediction is a cosine."""

    item_name = "pairs"

    def __init__(self, pairs: Sequence[SentencePair], parameters: Mapping[str, Scalar]) -> None:
        self._pairs = pairs
        self.places = [pair.place for pair in pairs]
        self.requests = [
            tuple(EncoderRequest({"text_input": text}, parameters=parameters) for text in (pair.first, pair.second))
            for pair in pairs
        ]

    def prediction(self, index: int, answers: Sequence[Outputs]) -> float:
        try:
            first, second = (outputs["embedding"] for outputs in answers)  # [size]
        except KeyError:
            raise RequestFailed("INTERNAL", f"not the answers of an embedding model: {sorted(answers[0])}") from None
        lengths = math.hypot(*first) * math.hypot(*second)
        return math.fsum(map(operator.mul, first, second)) / lengths if lengths else 0.0

    def difference(self, one: float, other: float) -> Difference:
        return Difference(False, abs(one - other))

    def is_numeric(self, predictions: Sequence[float]) -> bool:
        return True

    def report(self, predictions: Sequence[float]) -> Report:
        found = correlations([pair.similarity for pair in self._pairs], predictions)
        return Report({"Spearman": found["Spearman"], "Pearson": found["Pearson"]})
