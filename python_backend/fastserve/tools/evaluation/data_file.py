"""Reads a dataset's text, and says where in it something is wrong."""

from __future__ import annotations

from pathlib import Path

from fastserve.errors import ToolError, shorten


class BadDataset(ToolError):
    """A dataset cannot be read; the message names file, line and what is wrong."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{place(path, line)}: {problem}")


def place(path: Path, line: int) -> str:
    """How messages name a line, counted from 1."""
    return f"{path}:{line}"


def read_text(path: Path) -> str:
    """The whole file, without a byte order mark, line ends as they are. Raises :class:`ToolError` or :class:`BadDataset`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDataset(path, data[: error.start].count(b"\n") + 1, f"not UTF-8 text ({error.reason})") from None
    if not text.strip():
        raise ToolError(f"{path}: the file is empty")
    return text


def quoted(text: object) -> str:
    """A value as messages show it."""
    return shorten(repr(text), 60)
