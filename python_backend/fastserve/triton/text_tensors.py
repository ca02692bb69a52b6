"""Triton's strings are bytes; ours are text."""

from __future__ import annotations

from fastserve.errors import InvalidRequest


def decode_text(name: str, value: bytes) -> str:
    """An element of the string tensor ``name``. Raises InvalidRequest when it is not UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, value, f"valid UTF-8 (byte {error.start} is not)") from None
