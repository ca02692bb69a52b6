"""How far an evaluation is, for a person who waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from fastserve.tools import console


@contextlib.contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[], None]]:
    """On stderr, gone afterwards. Gives what to call once for each of ``total`` items."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    times = TimeElapsedColumn(), TimeRemainingColumn()
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, console=console.stderr(), transient=True) as progress:
        bar = progress.add_task(name, total=total)
        yield lambda: progress.advance(bar)
