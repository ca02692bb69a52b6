"""Asks a running server, for people who have its object in hand; programs elsewhere use any client of Triton."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar, cast

from fastserve.config import GENERATION_TASK
from fastserve.errors import FastServeError, InvalidRequest, ToolError
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
Client = TypeVar("Client", GenerateClient, EncoderClient)
Answered = TypeVar("Answered")


class ServedModel:
    """A model of a running server. Its connection is opened when it is first needed; any thread may use it."""

    def __init__(self, url: str, name: str, task: str) -> None:
        """``url``: HTTP."""
        self.url = url
        self._name = name
        self._task = task
        self._changing = threading.Lock()
        self._client: GenerateClient | EncoderClient | None = None
        self._closed = False

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
            return [answer.text for answer in _ask(functools.partial(generate, self._connected(connect)), requests)]
        first = "question" if self._task == "question-answering" else "text_input"
        rows = _rows(first, texts, arguments)
        return list(map(result_of, _ask(functools.partial(self._connected(connect_encoder).infer, self._name), rows)))

    def close(self) -> None:
        """Requests that are under way fail."""
        with self._changing:
            self._closed = True
            if self._client is not None:
                self._client.close()
            self._client = None

    def _connected(self, connect: Callable[[str], Client]) -> Client:
        """The one client of this model, for its task. Raises :class:`ToolError` once it is closed."""
        with self._changing:
            if self._closed:
                raise ToolError(f"the server of {self._name} is not running any more")
            if self._client is None:
                self._client = connect(self.url)
            return cast(Client, self._client)


def _rows(first: str, texts: Sequence[str], arguments: Mapping[str, Any]) -> list[EncoderRequest]:
    """The request for each text. Arguments that are inputs have a value for all texts, or one for each."""
    columns: dict[str, Sequence[str]] = {first: texts}
    spans: dict[str, Sequence[tuple[int, int]]] = {}
    labels: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _SECOND_TEXTS:
            columns[name] = [value] * len(texts) if isinstance(value, str) else _column(name, value, len(texts))
        elif name in _SPANS:
            spans[name] = _spans(name, value, len(texts))
        elif name == _CANDIDATE_LABELS and not isinstance(value, str):
            labels = _list(name, value)
        else:
            parameters[name] = _scalar(name, value)
    return [
        EncoderRequest(
            {name: column[row] for name, column in columns.items()},
            {name: column[row] for name, column in spans.items()},
            labels,
            parameters,
        )
        for row in range(len(texts))
    ]


def _spans(name: str, value: Any, count: int) -> Sequence[tuple[int, int]]:
    """``value``: start and end for all texts, or a pair for each."""
    given = _list(name, value)
    if len(given) == 2 and isinstance(given[0], Integral):
        return [_span(name, given)] * count
    return [_span(name, pair) for pair in _column(name, given, count)]


def _span(name: str, value: Any) -> tuple[int, int]:
    pair = _list(name, value)
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


def _column(name: str, values: Any, count: int) -> tuple[Any, ...]:
    elements = _list(name, values)
    if len(elements) != count:
        raise InvalidRequest(name, f"{len(elements)} values", f"one for each of the {count} texts, or one for all")
    return elements


def _ask(ask: Callable[[Asked], Answered], requests: Sequence[Asked]) -> list[Answered]:
    answers: list[Answered] = []
    with contextlib.closing(in_order(ask, requests, CONCURRENCY)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, FastServeError):
                raise outcome
            answers.append(outcome)
    return answers
