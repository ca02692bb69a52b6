"""Reads the text format of protocol buffers, in which config.pbtxt is written, without knowing the messages.

Triton's client package would know them; an export does without it. The grammar is that of protobuf.dev, "Text Format Language
Specification", but for extensions and ``Any``, which no config.pbtxt has; a missing colon and a last comma in a list, which
Triton refuses, are let pass.
"""

from __future__ import annotations

import dataclasses
import re

_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)*
    (?:(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<word>-?[\w.]+(?:(?<=[eE])[+-]\d+)?)
    |(?P<sign>[][{}<>:,;])
    |(?P<end>\Z)
    |(?P<unknown>\S))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:x(?P<hex>[0-9a-fA-F]{1,2})|(?P<octal>[0-7]{1,3})|u(?P<unicode>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<sign>.))"
)
_SIGNS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_CLOSING = {"{": "}", "<": ">"}
_DEEPEST = 100
"""Messages within each other, as protocol buffers have it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """Names and values in their order. Numbers, names of enumerations and strings alike are text."""

    fields: tuple[tuple[str, str | Message], ...]

    def texts(self, name: str) -> list[str]:
        """The values of a field that are no messages."""
        return [value for key, value in self.fields if key == name and isinstance(value, str)]

    def messages(self, name: str) -> list[Message]:
        """The values of a field that are messages."""
        return [value for key, value in self.fields if key == name and isinstance(value, Message)]


def parse_text_format(text: str) -> Message:
    """The whole of ``text``. Raises ValueError that names the line."""
    return _Parser(text).message("", 0)


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._advance()

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._end)
        assert found is not None
        self._kind = str(found.lastgroup)
        self._token = found[self._kind]
        self._begin, self._end = found.span(self._kind)
        if self._kind == "unknown":
            raise self._error(f"got {self._token!r}, allowed: a name, a value or a sign")

    def _skip(self, signs: str) -> bool:
        """Pass over the token that is ahead if it is one of ``signs``. Whether it was."""
        skipped = self._kind == "sign" and self._token in signs
        if skipped:
            self._advance()
        return skipped

    def message(self, closing: str, depth: int) -> Message:
        """Fields up to ``closing``, "" for the end of the text. Raises ValueError."""
        if depth > _DEEPEST:
            raise self._error(f"messages within each other more than {_DEEPEST} deep")
        fields: list[tuple[str, str | Message]] = []
        while not (self._token == closing and self._kind in ("sign", "end")):
            name = self._token
            self._expect("word", "a field's name")
            fields += ((name, value) for value in self._values(depth))
            self._skip(",;")
        if closing:
            self._advance()
        return Message(tuple(fields))

    def _values(self, depth: int) -> list[str | Message]:
        """What follows a field's name: a value, or several in brackets."""
        self._skip(":")
        if not self._skip("["):
            return [self._value(depth)]
        values: list[str | Message] = []
        while not self._skip("]"):
            values.append(self._value(depth))
            if not self._skip(",") and self._token != "]":
                raise self._error(f"got {self._token!r}, allowed: , or ]")
        return values

    def _value(self, depth: int) -> str | Message:
        if self._kind == "sign" and (closing := _CLOSING.get(self._token)):
            self._advance()
            return self.message(closing, depth + 1)
        text = self._token
        if self._kind != "string":
            self._expect("word", "a value")
            return text
        parts = []
        while self._kind == "string":  # strings that follow each other are one
            parts.append(_unquoted(self._token))
            self._advance()
        return b"".join(parts).decode(errors="replace")

    def _expect(self, kind: str, what: str) -> None:
        if self._kind != kind:
            raise self._error(f"got {self._token or 'the end'!r}, allowed: {what}")
        self._advance()

    def _error(self, what: str) -> ValueError:
        return ValueError(f"line {self._text.count(chr(10), 0, self._begin) + 1}: {what}")


def _unquoted(string: str) -> bytes:
    """A string without its quotes and escapes. These may name single bytes of UTF-8."""
    pieces, end, inside = [], 0, string[1:-1]
    for escape in _ESCAPE.finditer(inside):
        pieces += [inside[end : escape.start()].encode(), _escaped(escape)]
        end = escape.end()
    return b"".join([*pieces, inside[end:].encode()])


def _escaped(escape: re.Match[str]) -> bytes:
    if escape["hex"]:
        return bytes([int(escape["hex"], 16)])
    if escape["octal"]:
        return bytes([int(escape["octal"], 8) & 0xFF])
    if code := escape["unicode"] or escape["long"]:
        return chr(int(code, 16)).encode(errors="replace")
    return _SIGNS.get(escape["sign"], escape["sign"]).encode()
