"""A client of the generation contract (DESIGN section "Triton contract"), the same over gRPC and HTTP.

::

    with connect("127.0.0.1:8001") as client, client.stream(GenerateRequest("llama", text="Once upon")) as answers:
        for answer in answers:
            print(answer.text, end="")

A client may be used from many threads at once; each stream belongs to the thread that iterates it, except for
``close()``, which any thread may call to cancel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from fastserve.errors import FastServeError, ToolError

CLIENT_COMMAND = "pip install 'triton-fastserve[client]'"
DEFAULT_RETURNS = ("finish_reason", "num_input_tokens", "num_output_tokens")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

TensorValue = tuple[str, str, list[Any]]
"""Name, Triton data type, and the elements in one row."""


class RequestFailed(FastServeError):
    """The server answered with an error. ``status`` is Triton's name of it, e.g. INVALID_ARG, UNAVAILABLE, CANCELLED."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class ServerUnreachable(ToolError):
    """No connection, or it broke before the answer was complete."""


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
    """Whether every token is answered on its own, or everything at the end."""
    exclude_input_in_output: bool | None = None
    returns: tuple[str, ...] = DEFAULT_RETURNS
    """Optional outputs to ask for: the names of the contract's ``return_*`` inputs without the prefix."""
    batch_dimension: bool = False
    """For models with max_batch_size > 0: gRPC tensors get a leading 1 (over HTTP Triton adds it itself)."""

    def tensors(self) -> list[TensorValue]:
        """The inputs that are sent, in the contract's order."""
        parameters = dict(self.parameters)
        if self.messages is not None:
            parameters["messages"] = [dict(message) for message in self.messages]
        tensors: list[TensorValue] = [] if self.text is None else [("text_input", "BYTES", [self.text])]
        if self.input_ids is not None:
            tensors.append(("input_ids", "INT64", list(self.input_ids)))
        tensors.append(("stream", "BOOL", [self.stream]))
        if parameters:
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
        return tuple(self.tensors.get("text_output", ()))

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""

    @property
    def finish_reason(self) -> str | None:
        """Why the (first) answer ended; None while it goes on."""
        reasons = self.tensors.get("finish_reason", ())
        return str(reasons[0]) if reasons and reasons[0] != "None" else None

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
    """HTTP for ``http://`` and ``https://`` URLs, gRPC for ``grpc://host:port`` and ``host:port``.

    Nothing is sent yet. Raises :class:`ToolError` when the protocol's client library is not installed.
    """
    try:
        if url.startswith(("http://", "https://")):
            from fastserve.tools.http_client import HttpGenerateClient

            return HttpGenerateClient(url)
        from fastserve.tools.grpc_client import GrpcGenerateClient

        return GrpcGenerateClient(url.removeprefix("grpc://"))
    except ImportError as error:
        raise ToolError(f"the client needs {error.name}: {CLIENT_COMMAND}") from None


def _first(values: Sequence[Any]) -> int | None:
    return int(values[0]) if len(values) else None
