"""A log file that cannot fill the disk: two halves, the older one is overwritten."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path


class BoundedLog:
    """Appends bytes to ``path``; what is older lies in ``path.1``. Both together stay under ``max_bytes``.

    Writing never raises: a full disk loses log lines, it must not stop the server whose output this is.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._half = max(1, max_bytes // 2)
        self._size = 0
        self._stream: io.FileIO | None = path.open("wb", buffering=0)
        older_half(path).unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append ``data``; of a piece larger than half the limit only the end is kept."""
        data = data[-self._half :]
        if self._size + len(data) > self._half:
            self._rotate()
        if self._stream is None:
            return
        with contextlib.suppress(OSError):
            self._stream.write(data)
            self._size += len(data)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _rotate(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self._path.replace(older_half(self._path))
            self._stream, self._size = self._path.open("wb", buffering=0), 0


def older_half(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def read_tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a bounded log, across both halves; empty when there is no file."""
    text = ""
    for part in (older_half(path), path):
        with contextlib.suppress(OSError):
            text += part.read_text(encoding="utf-8", errors="replace")
    return text.splitlines()[-lines:]
