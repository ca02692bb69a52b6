"""The generation contract over HTTP: Triton's ``generate`` and ``generate_stream`` (server-sent events).

Triton answers 400 to whatever a model refuses, also where it is busy or does not support it, and an error within a stream comes
after the 200. The status of :class:`RequestFailed` is therefore taken from the message where it begins with one, else from the
HTTP status where that is certain (404 NOT_FOUND, 503 UNAVAILABLE, ...), else it is UNKNOWN.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from fastserve.errors import ToolError
from fastserve.tools.client import (
    GenerateRequest,
    GenerateResponse,
    RequestFailed,
    ServerUnreachable,
    closed_client,
    is_loopback,
    refusal,
)

_CONNECT_TIMEOUT_S = 10.0
_STATUS_NAMES = {
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNSUPPORTED",
    503: "UNAVAILABLE",
}
_DATA = "data:"
_ROWS = ("input_ids",)
"""Inputs sent as JSON arrays; all others have one element."""


class HttpGenerateClient:
    """See :class:`fastserve.tools.client.GenerateClient`. ``url``: ``http://host:port``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = open_client(url)

    def stream(self, request: GenerateRequest) -> HttpStream:
        """Send the request and wait until the answer begins.

        Raises :class:`ServerUnreachable`, :class:`fastserve.errors.InvalidRequest` and, when the client is closed,
        :class:`ToolError`.
        """
        inputs = request.tensors()
        if self._client.is_closed:
            raise closed_client()
        method = "generate_stream" if request.stream else "generate"
        url = f"{model_url(self._url, request.model)}/{method}"
        body = {name: values if name in _ROWS else values[0] for name, _, values in inputs}
        try:
            response = self._client.send(self._client.build_request("POST", url, json=body), stream=True)
        except httpx.RequestError as error:
            raise unreachable(self._url, error) from None
        return HttpStream(response, self._url)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> HttpGenerateClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class HttpStream:
    """See :class:`fastserve.tools.client.ResponseStream`. Closing it closes the connection, which is how HTTP cancels."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url
        self._closed = False
        self._payloads = self._read()

    def __iter__(self) -> HttpStream:
        return self

    def __next__(self) -> GenerateResponse:
        if self._closed:
            self._response.close()
            raise StopIteration
        try:
            payload = next(self._payloads)
        except (httpx.RequestError, httpx.StreamError) as error:  # StreamError: the client was closed meanwhile
            self._response.close()
            if self._closed:
                raise StopIteration from None
            raise unreachable(self._url, error) from None
        except StopIteration:
            self._response.close()
            raise
        if "error" in payload:
            self._response.close()
            raise failure(payload, self._response.status_code)
        tensors = {name: value if isinstance(value, list) else [value] for name, value in payload.items()}
        return GenerateResponse(tensors, time.monotonic())

    def close(self) -> None:
        """Wakes a thread that waits in ``next``: the socket is shut down, that thread then closes the response."""
        if self._closed or self._response.is_closed:
            return
        self._closed = True
        network = self._response.extensions.get("network_stream")
        connection = network.get_extra_info("socket") if network is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self._response.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of the answer, whether one body or server-sent events."""
        if "text/event-stream" not in self._response.headers.get("content-type", ""):
            yield parse(self._response.read().decode("utf-8", "replace"), self._response.status_code)
            return
        for line in self._response.iter_lines():
            if line.startswith(_DATA):
                yield parse(line[len(_DATA) :], self._response.status_code)


def open_client(url: str) -> httpx.Client:
    """Connects when it is used, to any number of requests at once. Raises :class:`ToolError` for what is no URL."""
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise ToolError(f"{url}: {error}; use http://host:port") from None
    return httpx.Client(
        timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None),
        trust_env=not is_loopback(host),
    )


def model_url(server: str, model: str) -> str:
    return f"{server.rstrip('/')}/v2/models/{quote(model, safe='')}"


def parse(text: str, status: int) -> dict[str, Any]:
    """The JSON object of an answer; what is none becomes ``{"error": ...}``."""
    try:
        payload = json.loads(text)
    except ValueError:
        payload = None
    if isinstance(payload, dict):
        return payload
    return {"error": f"HTTP {status}: {text.strip()[:200] or 'empty answer'}"}


def failure(payload: Mapping[str, Any], status: int) -> RequestFailed:
    """What the ``error`` of a JSON answer means, with the HTTP status it came with."""
    return refusal(str(payload["error"]), _STATUS_NAMES.get(status, "UNKNOWN"))


def unreachable(url: str, error: Exception) -> ServerUnreachable:
    return ServerUnreachable(f"no answer from {url} ({error}); is the server running there? `fastserve serve` starts one")
