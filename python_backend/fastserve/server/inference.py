"""Asks a running server, for people who have its object in hand; programs elsewhere use any client of Triton."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

from fastserve.config import GENERATION_TASK
from fastserve.errors import FastServeError, InvalidRequest
from fastserve.tools.answer import generate
from fastserve.tools.client import GenerateClient, GenerateRequest, connect
from fastserve.tools.encoder_client import EncoderClient, EncoderRequest, connect_encoder, result_of
from fastserve.tools.ordered_requests import in_order

CONCURRENCY = 64
"""Requests at the same time: what the server makes batches of."""
_SECOND_TEXTS = ("text_pair", "context")
_SPANS = ("head", "tail")
_CANDIDATE_LABELS = "candidate_labels"

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class ServedModel:
    """A model of a running server. Its connections are opened when they are first needed; any thread may use it."""

    def __init__(self, url: str, name: str, task: str) -> None:
        """``url``: HTTP."""
        self.url = url
        self._name = name
        self._task = task

    def infer(self, texts: Sequence[str], arguments: Mapping[str, Any]) -> list[Any]:
        """One result for each text, in order. Raises the first error, as :class:`fastserve.tools.client.RequestFailed`,
        InvalidRequest or ToolError."""
        for text in texts:
            if not isinstance(text, str):
                raise InvalidRequest("texts", text, "a text, or a list of texts")
        if self._task == GENERATION_TASK:
            requests = [
                GenerateRequest(self._name, text, parameters=dict(arguments), stream=False, exclude_input_in_output=True)
                for text in texts
            ]
            return [answer.text for answer in _ask(functools.partial(generate, self._generator), requests)]
        first = "question" if self._task == "question-answering" else "text_input"
        rows = [_row(first, text, index, len(texts), arguments) for index, text in enumerate(texts)]
        return list(map(result_of, _ask(functools.partial(self._encoder.infer, self._name), rows)))

    def close(self) -> None:
        """Requests that are under way fail."""
        for kind in ("_generator", "_encoder"):
            if (client := self.__dict__.pop(kind, None)) is not None:
                client.close()

    @functools.cached_property
    def _generator(self) -> GenerateClient:
        return connect(self.url)

    @functools.cached_property
    def _encoder(self) -> EncoderClient:
        return connect_encoder(self.url)


def _row(first: str, text: str, index: int, count: int, arguments: Mapping[str, Any]) -> EncoderRequest:
    """The request for the text at ``index`` of ``count``: of an argument that is an input, its element."""
    texts = {first: text}
    spans: dict[str, tuple[int, int]] = {}
    labels: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _SECOND_TEXTS:
            texts[name] = value if isinstance(value, str) else _element(name, value, index, count)
        elif name in _SPANS:
            spans[name] = _span(name, value, index, count)
        elif name == _CANDIDATE_LABELS and not isinstance(value, str):
            labels = _list(name, value)
        else:
            parameters[name] = _scalar(name, value)
    return EncoderRequest(texts, spans, labels, parameters)


def _span(name: str, value: Any, index: int, count: int) -> tuple[int, int]:
    """``value``: start and end for all texts, or a pair for each."""
    pair = _list(name, value)
    if len(pair) != 2 or not isinstance(pair[0], Integral):
        pair = _list(name, _element(name, value, index, count))
    if len(pair) != 2 or not all(isinstance(bound, Integral) for bound in pair):
        raise InvalidRequest(name, value, "two whole numbers, where a part of the text starts and ends, or a pair for each text")
    return int(pair[0]), int(pair[1])


def _list(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise InvalidRequest(name, value, "a list") from None


def _scalar(name: str, value: Any) -> str | int | float | bool:
    """What Triton takes as a request parameter; lists and objects as JSON, which is how the tasks read them."""
    if isinstance(value, (str, int, float)):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        raise InvalidRequest(name, value, "a text, a number, true or false, or a list of these") from None


def _element(name: str, values: Any, index: int, count: int) -> Any:
    elements = _list(name, values)
    if len(elements) != count:
        raise InvalidRequest(name, f"{len(elements)} values", f"one for each of the {count} texts, or one for all")
    return elements[index]


def _ask(ask: Callable[[Asked], Answered], requests: Sequence[Asked]) -> list[Answered]:
    answers: list[Answered] = []
    with contextlib.closing(in_order(ask, requests, CONCURRENCY)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, FastServeError):
                raise outcome
            answers.append(outcome)
    return answers
