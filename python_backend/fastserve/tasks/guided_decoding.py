"""The parameters that say what an answer has to look like: ``json``, ``regex`` and ``choice``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastserve.errors import InvalidRequest
from fastserve.text.guidance import GUIDES

MAX_GUIDE_BYTES = 32 * 1024
"""Of a schema, an expression, or all choices: what compiles within some tenths of a second whatever it says."""
MAX_CHOICES = 1024

JSON_ALLOWED = f"a JSON schema (an object or its text, at most {MAX_GUIDE_BYTES // 1024} KiB), or true for any JSON object"
REGEX_ALLOWED = f"a regular expression that is not empty, at most {MAX_GUIDE_BYTES // 1024} KiB"
CHOICE_ALLOWED = f"a list of 1 to {MAX_CHOICES} strings that are not empty, at most {MAX_GUIDE_BYTES // 1024} KiB"


def read_json_guide(value: Any) -> str | None:
    """A schema as text; None when no JSON is asked for. Raises ValueError."""
    if isinstance(value, str):
        value = _from_json(value)
    if value is True:
        value = {"type": "object"}
    if value is False:
        return None
    if not isinstance(value, dict):
        raise ValueError
    return _sized(json.dumps(value))


def read_regex(value: Any) -> str:
    """Raises ValueError."""
    if not isinstance(value, str) or not value or (len(value) - len(value.rstrip("\\"))) % 2:  # a backslash before nothing
        raise ValueError
    return _sized(value)


def read_choice(value: Any) -> tuple[str, ...]:
    """From a list or its JSON text. Raises ValueError."""
    choices = _from_json(value) if isinstance(value, str) else value
    if not isinstance(choices, (list, tuple)) or not 0 < len(choices) <= MAX_CHOICES:
        raise ValueError
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError
    _sized("".join(choices))
    return tuple(dict.fromkeys(choices))


def guide_of(parsed: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The one guide among a request's parameters: its name and value. Raises InvalidRequest for two, and for ignore_eos, which
    takes away the only token that can end an answer."""
    given = [name for name in GUIDES if parsed[name] is not None]
    if len(given) > 1:
        raise InvalidRequest(given[1], parsed[given[1]], f"one of {', '.join(GUIDES)}: {given[0]} is given too")
    if given and parsed["ignore_eos"]:
        raise InvalidRequest("ignore_eos", True, f"false with {given[0]}: the answer ends where its grammar says")
    return (given[0], parsed[given[0]]) if given else None


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError from None


def _sized(text: str) -> str:
    if len(text.encode()) > MAX_GUIDE_BYTES:  # half a surrogate pair raises UnicodeEncodeError, a ValueError
        raise ValueError
    return text
