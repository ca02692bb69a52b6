"""What is the same for every task: a dataset turned into requests, answers into predictions, predictions into a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from fastserve.tools.encoder_client import EncoderRequest, Outputs

Prediction = TypeVar("Prediction")
"""What a model says of one item, in the terms in which it is judged."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """How well one model did."""

    metrics: Mapping[str, float]
    """The measures to put beside those of other models, in the order to show them."""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Whole reports as their library prints them, by title."""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The same for programs, and counts worth knowing; JSON values."""
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Between two models' predictions of one item. ``answers``: they say different things; ``score``: the largest distance
    of two scores, 0 where there is nothing to compare."""

    answers: bool
    score: float


class EvaluationTask(Protocol[Prediction]):
    """One dataset under one task."""

    @property
    def item_name(self) -> str:
        """What the items are, in the plural: "sentences"."""

    @property
    def places(self) -> Sequence[str]:
        """Where each item stands, ``file:line``, for messages."""

    @property
    def requests(self) -> Sequence[Sequence[EncoderRequest]]:
        """What is asked about each item."""

    def prediction(self, index: int, answers: Sequence[Outputs]) -> Prediction:
        """From the answers to ``requests[index]``. Raises :class:`fastserve.tools.client.RequestFailed` for what is no answer."""

    def report(self, predictions: Sequence[Prediction]) -> Report:
        """Over all items. Raises :class:`fastserve.errors.ToolError` when dataset and model do not fit."""

    def difference(self, one: Prediction, other: Prediction) -> Difference: ...
    def is_numeric(self, predictions: Sequence[Prediction]) -> bool:
        """Whether predictions are bare numbers, so that only their distance can tell two models apart."""
