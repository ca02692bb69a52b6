"""A user's Python function as it is served: called with a batch of texts gathered from several requests."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastserve.errors import ConfigError, ErrorCode, shorten
from fastserve.functions.wire import Call, Failure, Result

logger = logging.getLogger(__name__)

PARAMETERS_ARGUMENT = "parameters"
_ALLOWED = f"a function (model, texts) or (model, texts, {PARAMETERS_ARGUMENT})"
_MESSAGE_LENGTH = 1000


class ServedFunction:
    """``function(model, texts)``, or with the requests' parameters as a third argument named "parameters".

    Thread-safe as far as the function is: it is called on several threads with the same model.
    """

    def __init__(self, function: Callable[..., Any], model: object) -> None:
        """Raises :class:`ConfigError` for what cannot be called in one of the two ways."""
        self.name = getattr(function, "__name__", type(function).__name__)
        self.takes_parameters = _takes_parameters(function)
        self._function = function
        self._model = model

    def run(self, calls: Sequence[Call]) -> list[Result | Failure]:
        """One call of the function for all the texts of ``calls``, which have the same parameters.

        One answer a call, in their order. Never raises: whatever the function does becomes the calls' failure.
        """
        texts = [text for call in calls for text in call.texts]
        count = len(texts)  # the list is the function's now, to change as it likes
        arguments = {PARAMETERS_ARGUMENT: dict(calls[0].parameters)} if self.takes_parameters else {}
        try:
            results = _as_list(self._function(self._model, texts, **arguments))
        except BaseException as error:  # also sys.exit(): a thread of ours must not end of it
            logger.exception("%s failed on a batch of %d texts", self.name, count)
            return self._fail(calls, f"raised {type(error).__name__}: {_words(error)}")
        if results is None:
            return self._fail(calls, "returned what is no list")
        if len(results) != count:
            return self._fail(calls, f"returned {len(results)} results for {count} texts")
        remaining = iter(results)
        return [self._answer(call, [next(remaining) for _ in call.texts]) for call in calls]

    def _answer(self, call: Call, results: Sequence[object]) -> Result | Failure:
        try:
            texts = tuple(json.dumps(result, ensure_ascii=False, allow_nan=False, default=_plain) for result in results)
            "".join(texts).encode()
        except BaseException as error:  # a result may bring code of its own: ``tolist``, ``__repr__``
            return self._fail([call], f"returned a result that is no JSON value ({_words(error)})")[0]
        return Result(call.call_id, texts)

    def _fail(self, calls: Sequence[Call], problem: str) -> list[Result | Failure]:
        message = shorten(" ".join(f"the function {self.name} {problem}".split()), _MESSAGE_LENGTH)
        message = message.encode("utf-8", "replace").decode()
        return [Failure(call.call_id, ErrorCode.INTERNAL, message) for call in calls]


def _takes_parameters(function: Callable[..., Any]) -> bool:
    """Raises :class:`ConfigError` when the function can be called in neither way."""
    if not callable(function):
        raise ConfigError(f"inference: got {shorten(repr(function))}, allowed: {_ALLOWED}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"inference: got {function!r}, allowed: {_ALLOWED} that returns a list, not `async` or with `yield`")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that does not say
        return False
    takes = PARAMETERS_ARGUMENT in signature.parameters
    try:
        signature.bind(None, [], **({PARAMETERS_ARGUMENT: {}} if takes else {}))
    except TypeError:
        raise ConfigError(f"inference: got a function {signature}, allowed: {_ALLOWED}") from None
    return takes


def _as_list(results: object) -> Sequence[object] | None:
    """Lists and tuples as they are, arrays and tensors as lists; None for anything else."""
    plain = results.tolist() if hasattr(results, "tolist") else results
    return list(plain) if isinstance(plain, (list, tuple)) else None


def _words(error: BaseException) -> str:
    """What an error says, if it can say anything."""
    try:
        return str(error)
    except Exception:
        return "it cannot say why"


def _plain(value: object) -> object:
    """What JSON does not know: numbers and arrays of numpy, torch and their like."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {shorten(repr(value))}")
