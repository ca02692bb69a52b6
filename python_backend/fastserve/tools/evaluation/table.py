"""Reads rows with named fields: TSV and CSV with a header (or numbered columns), JSON lines, a JSON list of objects."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.errors import ToolError
from fastserve.tools.evaluation.data_file import BadDataset, quoted, read_text

SEPARATED = ("tsv", "csv")
_LONGEST_FIELD = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """``line``: where it begins, from 1; of a JSON list the number of the element."""

    fields: Mapping[str, Any]
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    fields: list[str]
    line: int


def read_table(path: Path, form: str, *, header: bool = True) -> list[Row]:
    """All rows. ``form``: "tsv", "csv", "jsonl" or "json". Without a header the columns are called "1", "2", ...

    In a TSV a quote is a character like any other, as in the GLUE files. Raises :class:`BadDataset` naming the line: a row
    with more or fewer fields than columns, what is no JSON object; :class:`ToolError` for a file without rows.
    """
    text = read_text(path)
    if form in SEPARATED:
        rows = list(_separated(path, text, form, header))
    elif form == "jsonl":
        rows = [
            Row(_json_object(path, number, line), number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
        ]
    else:
        rows = _json_list(path, text)
    if not rows:
        raise ToolError(f"{path}: no rows in it")
    return rows


def parse_json(path: Path, text: str, first_line: int = 1) -> Any:
    """JSON values; ``first_line``: where ``text`` begins in its file. Raises :class:`BadDataset`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadDataset(path, first_line + error.lineno - 1, f"not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise BadDataset(path, first_line, "not JSON that can be read (nested too deeply)") from None


def column(path: Path, row: Row, given: str | None, usual: Sequence[str], option: str) -> str:
    """The name of the column to take: the given one, else the first usual one that is there.

    Raises :class:`BadDataset` naming ``option`` and the columns there are.
    """
    names = usual if given is None else (given,)
    found = next((name for name in names if name in row.fields), None)
    if found is None:
        missing = f"no column {given}" if given is not None else f"none of the columns {', '.join(usual)}"
        raise BadDataset(path, row.line, f"{missing}; name one with {option}: {', '.join(map(str, row.fields))}")
    return found


def text_in(path: Path, row: Row, name: str) -> str:
    """The text of a field; numbers as they are written. Raises :class:`BadDataset` for what is missing or no text."""
    value = row.fields.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadDataset(path, row.line, f"{name}: got {quoted(value)}, allowed: text")
    return value


def _separated(path: Path, text: str, form: str, header: bool) -> Iterator[Row]:
    records = _records(path, text, form)
    first = records[0].fields if records else []
    names = first if header else [str(number) for number in range(1, len(first) + 1)]
    if len(set(names)) < len(names):
        raise BadDataset(path, records[0].line, f"two columns have the same name: {', '.join(names)}")
    for record in records[1 if header else 0 :]:
        if len(record.fields) != len(names):
            raise BadDataset(path, record.line, f"{len(record.fields)} fields, {len(names)} columns: {quoted(record.fields)}")
        yield Row(dict(zip(names, record.fields, strict=True)), record.line)


def _records(path: Path, text: str, form: str) -> list[_Record]:
    """What stands between two ends of a record, and the line where it begins; blank lines are left out."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    lines = io.StringIO(text, newline="")
    if form == "tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    records, line = [], 1
    try:
        for fields in reader:
            if fields:
                records.append(_Record(fields, line))
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadDataset(path, max(line, reader.line_num), f"not {form.upper()} ({error})") from None
    finally:
        csv.field_size_limit(limit)
    return records


def _json_object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    value = parse_json(path, line, number)
    if not isinstance(value, dict):
        raise BadDataset(path, number, f"got {quoted(value)}, allowed: a JSON object a line")
    return value


def _json_list(path: Path, text: str) -> list[Row]:
    value = parse_json(path, text)
    if not isinstance(value, list) or not all(isinstance(element, dict) for element in value):
        raise BadDataset(path, 1, "allowed: a JSON list of objects")
    return [Row(element, number) for number, element in enumerate(value, start=1)]
