"""What the tools say to people. rich is imported when something is said, so that starting a tool stays fast."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show_any_text() -> None:
    """What this terminal's encoding has no sign for is shown as "?" instead of ending the tool."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def abandon_stdout() -> None:
    """Nothing more can be written there (its reader went away, the disk is full): what is still buffered is dropped."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout() -> Console:
    """A console for results; markup in model output or paths is never interpreted."""
    from rich.console import Console

    return Console(markup=False, highlight=False, soft_wrap=True)


def stderr() -> Console:
    """A console for everything that is not the result."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """One error, for a person."""
    console = stderr()
    console.print("fastserve: ", style="bold red", end="")
    console.print(message)
