"""A model's predictions of a whole dataset, several requests at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastserve.errors import FastServeError, ToolError
from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderClient, EncoderRequest, Outputs
from fastserve.tools.evaluation.evaluation_task import EvaluationTask
from fastserve.tools.ordered_requests import in_order

TRUNCATED = "truncated"
"""Output of a predictor that cut a text off: the answer is not about the whole of it."""


class Predictor(Protocol):
    """Answers requests with the tensors of the encoder contract. ``concurrency``: requests it takes at the same time."""

    @property
    def concurrency(self) -> int: ...
    def answer(self, request: EncoderRequest) -> Outputs: ...


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a running server."""

    client: EncoderClient
    model: str
    concurrency: int

    def answer(self, request: EncoderRequest) -> Outputs:
        return self.client.infer(self.model, request)


@dataclasses.dataclass(frozen=True, slots=True)
class Predictions:
    """One for each item. ``truncated``: indices of those the predictor cut off."""

    values: Sequence[Any]
    truncated: frozenset[int]


def predict(task: EvaluationTask[Any], predictor: Predictor, advance: Callable[[], None]) -> Predictions:
    """Ask everything; ``advance`` is called once an item, in order.

    Raises :class:`ToolError` naming the item at the first request that fails: measures over the rest would mislead.
    """
    flat = list(itertools.chain.from_iterable(task.requests))
    values: list[Any] = []
    truncated: set[int] = set()
    with contextlib.closing(in_order(predictor.answer, flat, max(1, predictor.concurrency))) as outcomes:
        for index, requests in enumerate(task.requests):
            answers = [_answer(outcome, task.places[index]) for outcome in itertools.islice(outcomes, len(requests))]
            if any(answer.get(TRUNCATED) for answer in answers):
                truncated.add(index)
            try:
                values.append(task.prediction(index, answers))
            except RequestFailed as error:
                raise ToolError(f"{task.places[index]}: {error}") from None
            advance()
    return Predictions(values, frozenset(truncated))


def _answer(outcome: Outputs | FastServeError, place: str) -> Outputs:
    if isinstance(outcome, RequestFailed):
        raise ToolError(f"{place}: {outcome}")
    if isinstance(outcome, FastServeError):
        raise outcome
    return outcome
