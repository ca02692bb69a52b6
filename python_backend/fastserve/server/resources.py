"""What a running server holds on to, and gives back in the right order, however it ends."""

from __future__ import annotations

import contextlib
import os
import threading

from fastserve.functions.host import FunctionHost
from fastserve.server.work_directory import WorkDirectory
from fastserve.tools.launcher import TritonLauncher

DRAIN_S = 5.0
"""What a user's function that is running gets to finish when the server stops."""


class Resources:
    """Knows nothing of the object the user holds, so that object can be collected. :meth:`close` may be called by any
    thread, more than once; in a process forked from this one it does nothing."""

    def __init__(self) -> None:
        """Raises :class:`ToolError` without room for a work directory."""
        self.work = WorkDirectory()
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
