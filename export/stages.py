"""What every export does around its work: it tells its stages, times them, and turns what the disk says into an answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from fastserve.errors import ToolError
from fastserve.export.options import Progress, Stage


class StageClock:
    """Tells ``progress`` which stage begins and measures how long each takes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started: list[tuple[Stage, float]] = []

    def begin(self, stage: Stage) -> None:
        self._progress(stage)
        self._started.append((stage, time.monotonic()))

    def end(self) -> dict[str, float]:
        """Seconds of each stage, by :class:`Stage` name."""
        ends = [at for _, at in self._started[1:]] + [time.monotonic()]
        return {stage.name: end - at for (stage, at), end in zip(self._started, ends, strict=True)}


@contextlib.contextmanager
def readable_os_errors() -> Iterator[None]:
    """A full disk, a folder that may not be read, ...: ToolError instead of OSError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ToolError(f"{where}{error.strerror or error}") from error
