"""A private folder for the time of a server; what processes that were killed left behind is swept away by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from fastserve.errors import ToolError

_PREFIX = "fastserve-server-"


class WorkDirectory:
    """A folder (mode 0700) in the system's temporary folder, locked as long as this process has it."""

    def __init__(self) -> None:
        """Raises :class:`ToolError` when there is no room for it."""
        home = Path(tempfile.gettempdir())
        _sweep(home)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ToolError(f"no work directory could be made ({error}); free some space or set TMPDIR to another disk") from None
        with contextlib.suppress(OSError):  # a file system without locks: then nobody can sweep either
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(home: Path) -> None:
    """Delete the folders nobody has locked. One that is being made this instant is empty: it is left alone."""
    for folder in home.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its server is alive
                if any(folder.iterdir()):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
