"""Names of a classifier's labels from a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastserve.errors import InvalidRequest

_ALLOWED = "a text file with a label on each line, or a JSON file with a list of labels or with the number of each"


def read_labels(file: Path) -> tuple[str, ...]:
    """The labels in the order of the columns they name. ``file``: a label on each line; or, if it ends in .json, a list, an
    object with the number of each label (either way around), or an object with one list among other things.

    Raises InvalidRequest.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = _from_json(json.loads(text)) if file.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest("labels", str(file), f"{_ALLOWED} ({error})") from None
    if not found or not all(isinstance(label, str) and label.strip() for label in found):
        raise InvalidRequest("labels", str(file), f"{_ALLOWED}, none of them empty")
    return tuple(found)


def _from_json(data: Any) -> list[Any]:
    """Raises ValueError."""
    if isinstance(data, list):
        return data
    if isinstance(data, dict):
        if all(isinstance(value, int) for value in data.values()):
            data = {number: label for label, number in data.items()}
        if all(str(key).isdecimal() for key in data):
            numbered = {int(key): label for key, label in data.items()}
            if sorted(numbered) != list(range(len(numbered))):
                raise ValueError(f"numbers from 0 to {len(numbered) - 1} without gaps")
            return [numbered[number] for number in range(len(numbered))]
        lists = [value for value in data.values() if isinstance(value, list)]
        if len(lists) == 1:
            return lists[0]
    raise ValueError("no list of labels in it")
