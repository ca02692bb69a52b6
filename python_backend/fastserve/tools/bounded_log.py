"""A log file that cannot fill the disk: two halves, the older one is overwritten."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC


class BoundedLog:
    """Appends bytes to ``path``, also to what stands there already; what is older lies in ``path.1``.

    Both together stay under ``max_bytes`` once they are. What is no regular file (a device, a named pipe) is only written
    to, never renamed, and what its reader does not take at once is lost. Writing never raises and never waits: a full disk
    loses log lines, it must not stop the server whose output this is. Opening raises ``OSError``.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._half = max(1, max_bytes // 2)
        self._descriptor = os.open(path, _FLAGS, 0o666)
        status = os.fstat(self._descriptor)
        self._regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size

    def write(self, data: bytes) -> None:
        """Append ``data``; of a piece larger than half the limit only the end is kept."""
        data = data[-self._half :]
        if self._regular and self._size + len(data) > self._half:
            self._rotate()
        with contextlib.suppress(OSError):
            self._size += os.write(self._descriptor, data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _rotate(self) -> None:
        self.close()
        flags = _FLAGS
        try:
            self._path.replace(older_half(self._path))
        except OSError:  # a folder the user cannot write in: begin the file again instead
            flags |= os.O_TRUNC
        with contextlib.suppress(OSError):
            self._descriptor, self._size = os.open(self._path, flags, 0o666), 0


def older_half(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def read_tail(path: Path, lines: int, after: str | None = None) -> list[str]:
    """The last ``lines`` lines of a bounded log, across both halves, and only those behind the last line ``after``.

    Empty when there is no regular file: reading a pipe would wait.
    """
    text = ""
    for part in (older_half(path), path):
        with contextlib.suppress(OSError):
            text += part.read_text(encoding="utf-8", errors="replace") if part.is_file() else ""
    found = text.splitlines()
    if after in found:
        found = found[len(found) - found[::-1].index(after) :]
    return found[-lines:]
