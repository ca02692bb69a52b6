"""Folders for the time of some work, which other processes leave alone as long as the work goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class LockedFolder:
    """A new folder (mode 0700), locked until it is removed or this process ends. ``path``: it may be renamed meanwhile."""

    def __init__(self, home: Path, prefix: str) -> None:
        """Make it in ``home``, its name beginning with ``prefix``. Raises OSError."""
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
            with contextlib.suppress(FileNotFoundError):  # swept before it was locked: make a new one
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                with contextlib.suppress(OSError):  # a file system without locks: then nobody can sweep either
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                if self.path.exists():
                    return
                os.close(self._lock)

    def remove(self) -> None:
        """Delete what is at :attr:`path`, and unlock. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sweep(home: Path, prefix: str, *, sparing: str = "") -> None:
    """Delete the folders of processes that were killed. One that holds an entry ``sparing`` is left for a person to look at."""
    for folder in home.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another user's, or gone
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while somebody works in it
                if not (sparing and (folder / sparing).exists()):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
