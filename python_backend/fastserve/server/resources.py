"""What a running server holds on to, and gives back in the right order, however it ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path

from fastserve.errors import ToolError
from fastserve.functions.host import FunctionHost
from fastserve.locked_folder import LockedFolder, sweep
from fastserve.tools.launcher import TritonLauncher

DRAIN_S = 5.0
"""What a user's function that is running gets to finish when the server stops."""

_PREFIX = "fastserve-server-"


def work_folder() -> LockedFolder:
    """A private folder in the system's temporary one; what killed servers left there is swept away. Raises :class:`ToolError`
    without room for it."""
    home = Path(tempfile.gettempdir())
    sweep(home, _PREFIX)
    try:
        return LockedFolder(home, _PREFIX)
    except OSError as error:
        raise ToolError(f"no work directory could be made ({error}); free some space or set TMPDIR to another disk") from None


class Resources:
    """Knows nothing of the object the user holds, so that object can be collected. :meth:`close` may be called by any
    thread, more than once; in a process forked from this one it does nothing."""

    def __init__(self) -> None:
        """Raises :class:`ToolError` without room for a work directory."""
        self.work = work_folder()
        self.host: FunctionHost | None = None
        self.launcher: TritonLauncher | None = None
        self._owner = os.getpid()
        self._closing = threading.Lock()

    def close(self) -> None:
        """First the function ends, so that everybody gets an answer while Triton can still send it."""
        if os.getpid() != self._owner:
            return
        with self._closing, contextlib.ExitStack() as stack:
            stack.callback(self.work.remove)
            if self.host is not None:
                stack.callback(self.host.close)
            if self.launcher is not None:
                stack.callback(self.launcher.stop)
            if self.host is not None:
                stack.callback(self.host.drain, DRAIN_S)
            self.host = self.launcher = None
