"""A client of the generation contract (its tensors and parameters are in the README), the same over gRPC and HTTP.

::

    with connect("127.0.0.1:8001") as client, client.stream(GenerateRequest("llama", text="Once upon")) as answers:
        for answer in answers:
            print(answer.text, end="")

A client may be used from many threads at once; each stream belongs to the thread that iterates it, except for
``close()``, which any thread may call to cancel.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from fastserve.errors import ErrorCode, FastServeError, InvalidRequest, ToolError

CLIENT_COMMAND = "pip install 'triton-fastserve[client]'"
DEFAULT_RETURNS = ("finish_reason", "num_input_tokens", "num_output_tokens")
_INT64 = range(-(2**63), 2**63)

TensorValue = tuple[str, str, list[Any]]
"""Name, Triton data type, and the elements in one row."""


class RequestFailed(FastServeError):
    """The server answered with an error. ``status`` is Triton's name of its kind, e.g. INVALID_ARG, UNAVAILABLE, CANCELLED;
    UNKNOWN where nobody says.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class ServerUnreachable(ToolError):
    """No connection, or it broke before the answer was complete."""


def refusal(message: str, otherwise: str) -> RequestFailed:
    """The failure that an error message of the server tells of.

    FastServe's messages begin with the name of their code, because Triton does not pass codes on. ``otherwise``: the status
    of messages without one, which are Triton's own.
    """
    code, colon, rest = re.sub(r"^\[request id: [^]]*\] ", "", message).partition(": ")
    if colon and code in ErrorCode.__members__:
        return RequestFailed(code, rest)
    return RequestFailed("NOT_FOUND" if "unknown model" in message else otherwise, message)


@dataclasses.dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation. Of ``text``, ``messages`` (chat) and ``input_ids`` usually exactly one is given."""

    model: str
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    """Chat turns with "role" and "content"; the server renders the model's template."""
    input_ids: Sequence[int] | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Sampling parameters, sent as one JSON object."""
    stream: bool = True
    """Whether the answer comes as it is made, a response for each token or for several, or all at the end."""
    exclude_input_in_output: bool | None = None
    returns: tuple[str, ...] = DEFAULT_RETURNS
    """Optional outputs to ask for: the names of the contract's ``return_*`` inputs without the prefix."""
    batch_dimension: bool = False
    """For models with max_batch_size > 0: gRPC tensors get a leading 1 (over HTTP Triton adds it itself)."""

    def tensors(self) -> list[TensorValue]:
        """The inputs that are sent, in the contract's order.

        Raises :class:`InvalidRequest` for what cannot be sent: text with lone surrogates (a terminal makes them of bytes
        that are not UTF-8), token ids that do not fit 64 bits.
        """
        check_text("model", self.model)
        check_text("text_input", self.text or "")
        parameters = dict(self.parameters)
        if self.messages is not None:
            parameters["messages"] = [dict(message) for message in self.messages]
        tensors: list[TensorValue] = [] if self.text is None else [("text_input", "BYTES", [self.text])]
        if self.input_ids is not None:
            if wrong := [token for token in self.input_ids if token not in _INT64]:
                raise InvalidRequest("input_ids", wrong[0], "64-bit integers")
            tensors.append(("input_ids", "INT64", list(self.input_ids)))
        tensors.append(("stream", "BOOL", [self.stream]))
        if parameters:
            check_text("sampling_parameters", json.dumps(parameters, ensure_ascii=False))
            tensors.append(("sampling_parameters", "BYTES", [json.dumps(parameters)]))
        if self.exclude_input_in_output is not None:
            tensors.append(("exclude_input_in_output", "BOOL", [self.exclude_input_in_output]))
        return tensors + [(f"return_{name}", "BOOL", [True]) for name in self.returns]


@dataclasses.dataclass(frozen=True, slots=True)
class GenerateResponse:
    """One response: a delta when streaming, else the whole answer. ``arrival``: ``time.monotonic()`` when it was read."""

    tensors: Mapping[str, Sequence[Any]]
    arrival: float

    @property
    def texts(self) -> tuple[str, ...]:
        """One text for each of the request's ``n`` answers."""
        return tuple(map(str, self.tensors.get("text_output", ())))

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""

    @property
    def finish_reason(self) -> str | None:
        """Why the (first) answer ended; None while any of the request's answers goes on."""
        reasons = self.finish_reasons
        return reasons[0] if reasons and None not in reasons else None

    @property
    def finish_reasons(self) -> tuple[str | None, ...]:
        """Why each of the request's answers ended; None for those that go on."""
        return tuple(None if reason == "None" else str(reason) for reason in self.tensors.get("finish_reason", ()))

    @property
    def num_input_tokens(self) -> int | None:
        return _first(self.tensors.get("num_input_tokens", ()))

    @property
    def num_output_tokens(self) -> int | None:
        """Tokens in this response, over all answers; None unless asked for."""
        counts = self.tensors.get("num_output_tokens", ())
        return sum(int(count) for count in counts) if counts else None

    @property
    def output_ids(self) -> tuple[int, ...]:
        return tuple(int(token) for token in self.tensors.get("output_ids", ()))


class ResponseStream(Protocol):
    """The responses of one request in order. Iterating raises :class:`RequestFailed` or :class:`ServerUnreachable`.

    ``close`` cancels what has not arrived yet; iteration then ends. It may be called twice and from any thread.
    """

    def __iter__(self) -> ResponseStream: ...
    def __next__(self) -> GenerateResponse: ...
    def close(self) -> None: ...
    def __enter__(self) -> ResponseStream: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class GenerateClient(Protocol):
    """A connection to one server, for any number of concurrent requests."""

    def stream(self, request: GenerateRequest) -> ResponseStream: ...
    def close(self) -> None: ...
    def __enter__(self) -> GenerateClient: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def connect(url: str) -> GenerateClient:
    """A client of the server at ``url``. Nothing is sent yet.

    Raises :class:`ToolError` as :func:`protocol_and_address`, and when the protocol's library is missing.
    """
    protocol, address = protocol_and_address(url)
    try:
        if protocol == "http":
            from fastserve.tools.http_client import HttpGenerateClient

            return HttpGenerateClient(address)
        from fastserve.tools.grpc_client import GrpcGenerateClient

        return GrpcGenerateClient(address)
    except ImportError as error:
        raise missing_library(error) from None


def protocol_and_address(url: str) -> tuple[str, str]:
    """("http", the URL) for ``http://`` and ``https://``, ("grpc", host:port) for ``grpc://host:port`` and ``host:port``.

    Raises :class:`ToolError` when the URL is none of these.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower() if separator else "grpc"
    if scheme in ("http", "https"):
        return "http", f"{scheme}://{rest}"
    if scheme == "grpc":
        return "grpc", rest.rstrip("/") if separator else url
    raise ToolError(f"{url}: {scheme}:// is no protocol of Triton; use host:port (gRPC) or http://host:port")


def missing_library(error: ImportError) -> ToolError:
    return ToolError(f"the client needs {error.name}: {CLIENT_COMMAND}")


def is_loopback(host: str | None) -> bool:
    """Whether ``host`` can only be this machine, so that no proxy must come between."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def closed_client() -> ToolError:
    return ToolError("this client is closed; connect again")


def check_text(field: str, text: str) -> None:
    """Raise :class:`InvalidRequest` for text with lone surrogates, which cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, text, "text that can be written as UTF-8") from None


def _first(values: Sequence[Any]) -> int | None:
    return int(values[0]) if len(values) else None
