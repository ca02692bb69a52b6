"""What the stub and the user's process say to each other over their socket. Nothing is pickled, and every size is bounded.

A frame is its sizes (``!II``: bytes of the header, bytes of the body), a header (a JSON object whose ``kind`` says what it
is) and a body: texts, or results as JSON, one after the other in UTF-8, each as long as the header's ``sizes`` says.

The stub begins with :class:`Hello`, the host answers with its own. Then the stub sends :class:`Call` and :class:`Drop`, and
the host ends each call that was not dropped with one :class:`Result` or :class:`Failure`.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastserve.errors import ErrorCode, FastServeError

WIRE_VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 20

_SIZES = struct.Struct("!II")


class WireError(FastServeError):
    """The other side sent what is no frame, or one of another version; the connection cannot go on."""


class FrameTooLarge(FastServeError):
    """A message that must not be sent. ``part``: "header" or "body"."""

    code = ErrorCode.INVALID_ARG

    def __init__(self, part: str, size: int, limit: int) -> None:
        super().__init__(f"{size} bytes, at most {limit} can be sent at once")
        self.part = part


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """The first message of each side. ``version``: :data:`WIRE_VERSION` of the sender."""

    version: int = WIRE_VERSION


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """Texts for the function. ``call_id``: the stub's, unique on its connection. ``parameters``: JSON values."""

    call_id: int
    texts: tuple[str, ...]
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for this call any more. It may have been answered already."""

    call_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The function's results for a call: a JSON text for each of its texts, in their order."""

    call_id: int
    results: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a call has no results."""

    call_id: int
    code: ErrorCode
    message: str


Message = Hello | Call | Drop | Result | Failure


def encode(message: Message) -> bytes:
    """The frame of a message. Raises :class:`FrameTooLarge`; texts that are not UTF-8 (lone surrogates) are ValueErrors."""
    pieces: list[bytes] = []
    header: dict[str, Any]
    if isinstance(message, Hello):
        header = {"kind": "hello", "version": message.version}
    elif isinstance(message, Call):
        pieces = [text.encode() for text in message.texts]
        header = {"kind": "call", "id": message.call_id, "parameters": dict(message.parameters), "sizes": list(map(len, pieces))}
    elif isinstance(message, Drop):
        header = {"kind": "drop", "id": message.call_id}
    elif isinstance(message, Result):
        pieces = [text.encode() for text in message.results]
        header = {"kind": "result", "id": message.call_id, "sizes": list(map(len, pieces))}
    else:
        header = {"kind": "failure", "id": message.call_id, "code": message.code.value, "message": message.message}
    head, body = json.dumps(header).encode(), b"".join(pieces)
    for part, size, limit in (("header", len(head), MAX_HEADER_BYTES), ("body", len(body), MAX_BODY_BYTES)):
        if size > limit:
            raise FrameTooLarge(part, size, limit)
    return _SIZES.pack(len(head), len(body)) + head + body


class Decoder:
    """Bytes as they arrive, in any pieces, to messages. Owned by one thread; holds at most one frame and a piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that ``data`` completes; iterate to the end before feeding more. Raises :class:`WireError`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _SIZES.size:
                head_bytes, body_bytes = _SIZES.unpack_from(self._buffer, start)
                if head_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
                    raise WireError(f"a frame of {head_bytes} + {body_bytes} bytes; is this FastServe's socket?")
                head = start + _SIZES.size
                body = head + head_bytes
                if len(self._buffer) < body + body_bytes:
                    break
                start = body + body_bytes
                yield _message(bytes(self._buffer[head:body]), bytes(self._buffer[body:start]))
        finally:
            del self._buffer[:start]


def _message(head: bytes, body: bytes) -> Message:
    try:
        header = json.loads(head)
        fields = _Fields(header)
        return _READERS[fields.text("kind")](fields, body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # also UnicodeDecodeError
        raise WireError(f"a frame that cannot be read ({type(error).__name__}: {error})") from None


class _Fields:
    """Typed access to a header. Raises KeyError or TypeError."""

    def __init__(self, header: Any) -> None:
        if not isinstance(header, dict):
            raise TypeError("the header is no object")
        self._header = header

    def number(self, key: str) -> int:
        value = self._header[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise TypeError(f"{key} is no number")
        return value

    def text(self, key: str) -> str:
        value = self._header[key]
        if not isinstance(value, str):
            raise TypeError(f"{key} is no text")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._header[key]
        if not isinstance(value, dict):
            raise TypeError(f"{key} is no object")
        return value

    def pieces(self, body: bytes) -> tuple[str, ...]:
        """The body's texts. Raises ValueError when ``sizes`` are not the body's."""
        sizes = self._header["sizes"]
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes) or sum(sizes) != len(body):
            raise ValueError("sizes are not those of the body")
        return tuple(_cut(body, sizes))


def _cut(body: bytes, sizes: Sequence[int]) -> Iterator[str]:
    start = 0
    for size in sizes:
        yield body[start : start + size].decode()
        start += size


_READERS: dict[str, Callable[[_Fields, bytes], Message]] = {
    "hello": lambda fields, body: Hello(fields.number("version")),
    "call": lambda fields, body: Call(fields.number("id"), fields.pieces(body), fields.mapping("parameters")),
    "drop": lambda fields, body: Drop(fields.number("id")),
    "result": lambda fields, body: Result(fields.number("id"), fields.pieces(body)),
    "failure": lambda fields, body: Failure(fields.number("id"), ErrorCode(fields.text("code")), fields.text("message")),
}
