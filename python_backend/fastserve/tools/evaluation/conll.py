"""Reads CoNLL files: a word a line with its tag, sentences apart by blank lines.

Columns are separated by tabs where a line has one, else by blanks: WNUT-17 (word, tag), CoNLL-2003 (word, part of speech,
chunk, tag) and their kin. ``-DOCSTART-`` lines are skipped. A line that begins with ``#`` is a comment unless it has as many
columns as the words have, because ``#`` is a word too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fastserve.errors import ToolError
from fastserve.tools.evaluation.data_file import BadDataset, quoted, read_text

FIRST_AND_LAST = (1, -1)
_DOCUMENT, _COMMENT = "-DOCSTART-", "#"
_BLANK = " \t\r\n\ufeff"
"""A byte order mark alone in a line (two files glued together) is no word."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """``tags`` has one for each of ``words``. ``line``: where it begins, from 1."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    line: int


def read_conll(path: Path, columns: tuple[int, int] = FIRST_AND_LAST) -> list[Sentence]:
    """All sentences of the file. ``columns``: of the word and of the tag, counted from 1, or from the end with -1.

    Raises :class:`BadDataset` naming the line: too few columns for ``columns``, another number of columns than the lines
    before, an empty word or tag; :class:`ToolError` for a file without sentences.
    """
    lines = read_text(path).split("\n")
    layout = _layout(lines)
    sentences: list[Sentence] = []
    words: list[tuple[str, str]] = []
    first = 0
    for number, line in enumerate([*lines, ""], start=1):
        fields = _fields(line)
        if not fields or fields[0] == _DOCUMENT:
            if words:
                sentences.append(Sentence(tuple(word for word, _ in words), tuple(tag for _, tag in words), first))
                words = []
        elif not _is_comment(line, layout):
            first = first if words else number
            words.append(_word_and_tag(path, number, fields, layout, columns))
    if not sentences:
        raise ToolError(f"{path}: no sentence in it")
    return sentences


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """How the file's first line with a word in it looks."""

    width: int
    tabs: bool


def _layout(lines: Sequence[str]) -> _Layout:
    for line in lines:
        fields = _fields(line)
        if fields and fields[0] != _DOCUMENT and not line.startswith(_COMMENT):
            return _Layout(len(fields), "\t" in line)
    return _Layout(0, False)


def _is_comment(line: str, layout: _Layout) -> bool:
    return line.startswith(_COMMENT) and _Layout(len(_fields(line)), "\t" in line) != layout


def _fields(line: str) -> list[str]:
    """Nothing for a blank line."""
    stripped = line.strip(_BLANK)
    if not stripped:
        return []
    return [field.strip(" ") for field in line.rstrip("\r").split("\t")] if "\t" in line else stripped.split(" ")


def _least(columns: tuple[int, int]) -> int:
    """The fewest columns a line must have; word and tag are two."""
    return max(2, *(abs(column) for column in columns))


def _word_and_tag(path: Path, number: int, fields: list[str], layout: _Layout, columns: tuple[int, int]) -> tuple[str, str]:
    shown = quoted(" ".join(fields))
    if len(fields) < _least(columns):
        raise BadDataset(path, number, f"columns: got {len(fields)}, at least {_least(columns)} needed: {shown}")
    if len(fields) != layout.width:
        raise BadDataset(path, number, f"columns: got {len(fields)}, the first line with a word has {layout.width}: {shown}")
    word, tag = (fields[column - 1 if column > 0 else column] for column in columns)
    if not word or not tag:
        raise BadDataset(path, number, f"the {'tag' if word else 'word'} is empty: {shown}")
    return word, tag
