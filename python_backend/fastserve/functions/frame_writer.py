"""Sends frames on a thread of its own, so that whoever has something to say never waits for the other side to listen."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading


class FrameWriter:
    """What is put together goes out together. When the other side has hung up, frames are dropped: its reader knows."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="fastserve-function-write", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, frame: bytes) -> None:
        """Send ``frame`` after those before it. From any thread; never blocks."""
        self._frames.put(frame)

    def close(self) -> None:
        """End once what was put has been sent, or cannot be."""
        self._frames.put(None)
        self._thread.join()

    def _main(self) -> None:
        frame = self._frames.get()
        while frame is not None:
            together = [frame]
            with contextlib.suppress(queue.Empty):
                while (frame := self._frames.get_nowait()) is not None:
                    together.append(frame)
            with contextlib.suppress(OSError):
                self._connection.sendall(b"".join(together))
            if frame is not None:
                frame = self._frames.get()
