"""Arguments of commands that are more than a type: for argparse, which shows what they say of a bad one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fastserve.errors import ToolError


def at_least(low: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``low``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a whole number, at least {low}")
        return int(text)

    return read


def check_output_file(file: Path | None) -> None:
    """Before the work whose result goes there. Raises :class:`ToolError` when it cannot."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ToolError(f"{file}: cannot be written: it is a folder, or its folder does not exist")
