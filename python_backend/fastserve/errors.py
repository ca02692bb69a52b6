"""Every error FastServe raises on purpose, and the code a Triton client sees for it.

The tree is flat on purpose: a *leaf* says what went wrong, its ``code`` says what the client should do about it.
``triton/protocol.py`` maps :class:`ErrorCode` to ``TritonError`` codes; nothing else needs to know Triton's numbers.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ErrorCode(enum.Enum):
    """What a client should make of an error. Names follow ``pb_utils.TritonError``."""

    INVALID_ARG = "INVALID_ARG"
    """The request is wrong; sending it again cannot help."""
    UNSUPPORTED = "UNSUPPORTED"
    """The request is meaningful, but this version or model cannot do it."""
    UNAVAILABLE = "UNAVAILABLE"
    """The server is too busy, too late or going away; the same request may succeed later."""
    CANCELLED = "CANCELLED"
    """The client withdrew the request."""
    NOT_FOUND = "NOT_FOUND"
    """A named model or file does not exist."""
    INTERNAL = "INTERNAL"
    """Our fault."""


def shorten(text: str, limit: int = 80) -> str:
    """What a client sent may be megabytes long; what it is told about it is not."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: BaseException) -> str:
    """What another library's error says, without the pages that may follow; its name when it says nothing."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 300)


class FastServeError(Exception):
    """Base of every deliberate error. ``str(error)`` is the whole message a user sees."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL


# --- what a request can get wrong -------------------------------------------------------------------------------------


class InvalidRequest(FastServeError):
    """A field of a request is malformed or out of range."""

    code = ErrorCode.INVALID_ARG

    def __init__(self, field: str, value: object, allowed: str) -> None:
        """``field``: the tensor or parameter; ``value``: what was sent (shortened); ``allowed``: what would be accepted."""
        super().__init__(f"{shorten(field)}: got {shorten(repr(value))}, allowed: {shorten(allowed, 1000)}")
        self.field = field


class UnsupportedFeature(FastServeError):
    """A documented field of the contract that this version does not implement yet."""

    code = ErrorCode.UNSUPPORTED

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{shorten(field)}: {shorten(detail, 1000)}")
        self.field = field


class RequestTooLong(InvalidRequest):
    """The request can never fit the model's context or the KV pool."""


# --- what can happen to a good request --------------------------------------------------------------------------------


class QueueFull(FastServeError):
    """The bounded queue is full: back-pressure, try again later."""

    code = ErrorCode.UNAVAILABLE


class DeadlineExceeded(FastServeError):
    """The request's ``deadline_ms`` passed before it finished."""

    code = ErrorCode.UNAVAILABLE


class ShuttingDown(FastServeError):
    """The model is being unloaded and the drain time is over."""

    code = ErrorCode.UNAVAILABLE


class RequestCancelled(FastServeError):
    """The client cancelled or went away."""

    code = ErrorCode.CANCELLED

    def __init__(self) -> None:
        super().__init__("Request was cancelled")


class StepFailed(FastServeError):
    """A model run failed. ``retryable`` failures are tried once more before the batch is failed."""

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class RequestUnreadable(FastServeError):
    """A bug of ours in reading a request; its neighbours go on."""

    code = ErrorCode.INTERNAL

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"the request could not be read ({type(cause).__name__}: {cause})")


class ResponderFailed(FastServeError):
    """A bug of ours, or a fault of Triton's, in sending an answer; its neighbours go on."""

    code = ErrorCode.INTERNAL


class EngineDead(FastServeError):
    """The engine thread ended with a bug; every request is answered with this."""

    code = ErrorCode.INTERNAL


# --- what can go wrong before serving ---------------------------------------------------------------------------------


class ConfigError(FastServeError):
    """A key of the configuration is unknown or its value is not allowed."""

    code = ErrorCode.INVALID_ARG


class ManifestError(FastServeError):
    """``manifest.json`` is missing, damaged, or from another version."""

    code = ErrorCode.INVALID_ARG


class ModelNotFound(FastServeError):
    """A model source, repository or file does not exist."""

    code = ErrorCode.NOT_FOUND


class UnsupportedModel(FastServeError):
    """Export refuses a model; the message names the feature that cannot be represented."""

    code = ErrorCode.UNSUPPORTED


class ProofFailed(FastServeError):
    """The exported graph does not reproduce its source model; nothing was written."""

    code = ErrorCode.INTERNAL


class ToolError(FastServeError):
    """A command-line tool cannot do what was asked; the message says what would mend it."""

    code = ErrorCode.UNAVAILABLE
