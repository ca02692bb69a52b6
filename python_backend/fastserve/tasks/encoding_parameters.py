"""The request parameters of encoder tasks: one table for each task, read by one function.

Values are Triton's request parameters: numbers and truth values may arrive as strings, lists arrive as JSON in a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastserve.errors import InvalidRequest
from fastserve.tasks.sampling_parameters import IGNORED, PARAMETERS, Parameter, read_truth

DEADLINE_PARAMETER = {"deadline_ms": PARAMETERS["deadline_ms"]}
WINDOW_PARAMETERS = {**DEADLINE_PARAMETER, "truncation": Parameter(read_truth, "true or false", False)}
"""What every task takes that cuts long texts into windows, unless the client wants them truncated."""


def choice(*names: str) -> Callable[[Any], str]:
    """A reader of one of ``names``, in any case."""

    def read(value: Any) -> str:
        name = str(value).strip().lower()
        if name not in names:
            raise ValueError
        return name

    return read


def text_list(*, commas: bool = False) -> Callable[[Any], tuple[str, ...]]:
    """A reader of a list of texts: a JSON list, or with ``commas`` also texts with commas between them."""

    def read(value: Any) -> tuple[str, ...]:
        if commas and isinstance(value, str) and not value.lstrip().startswith("["):
            return tuple(text.strip() for text in value.split(",") if text.strip())
        try:
            texts = json.loads(value) if isinstance(value, str) else value
        except RecursionError:
            raise ValueError from None
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError
        for text in texts:
            text.encode()  # half a surrogate pair is a ValueError: it is not text
        return tuple(texts)

    return read


def read_parameters(values: Mapping[str, Any], table: Mapping[str, Parameter]) -> dict[str, Any]:
    """Every parameter of ``table`` with its value; null means the default. Raises InvalidRequest naming the key."""
    parsed = {name: parameter.default for name, parameter in table.items()}
    for name, value in values.items():
        if name not in table:
            if name not in IGNORED:
                raise InvalidRequest(name, value, f"a parameter of this task: {', '.join(table)}")
        elif value is not None:
            try:
                parsed[name] = table[name].read(value)
            except (ValueError, OverflowError):
                raise InvalidRequest(name, value, table[name].allowed) from None
    return parsed
