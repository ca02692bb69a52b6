"""The thread that answers requests to a Python function: reads the connection to the function's process, watches the clock."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable

from fastserve.errors import FastServeError, ResponderFailed, ShuttingDown
from fastserve.functions.local_socket import PIECE_BYTES, FunctionUnavailable
from fastserve.functions.wire import Decoder, Failure, Message, Result, WireError
from fastserve.triton.function_requests import FunctionRequests, OpenRequest
from fastserve.triton.responder import Rejected

logger = logging.getLogger(__name__)

SWEEP_S = 0.05
"""Seconds between two looks for deadlines and cancelled requests while any request is open."""


class FunctionResponder:
    """Ends each :class:`OpenRequest` and :class:`~fastserve.triton.responder.Rejected` put into it exactly once."""

    def __init__(self, connection: socket.socket, send: Callable[[bytes], None]) -> None:
        """``connection`` is read here and written by ``send``, which never blocks."""
        self._connection = connection
        self._inbox: queue.SimpleQueue[OpenRequest | Rejected] = queue.SimpleQueue()
        self._requests = FunctionRequests(send)
        self._decoder = Decoder()
        self._lost: FastServeError | None = None
        self._stopping = False
        self._accepted = 0
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._selector.register(connection, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._main, name="fastserve-function-responder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def num_open(self) -> int:
        """Requests put in and not ended yet. Called by the thread that puts."""
        return self._accepted - self._requests.ended

    def put(self, message: OpenRequest | Rejected) -> None:
        """From the one thread that receives requests, before the call is sent; never blocks."""
        self._accepted += 1
        self._inbox.put(message)
        if isinstance(message, Rejected) or self.num_open() == 1:  # else it is awake, or will look within SWEEP_S
            os.eventfd_write(self._wakeup, 1)

    def stop(self) -> None:
        """End what is still open (UNAVAILABLE) and the thread. Nothing may be put in after this."""
        self._stopping = True
        os.eventfd_write(self._wakeup, 1)
        self._thread.join()
        self._selector.close()
        os.close(self._wakeup)

    def _main(self) -> None:
        next_sweep = 0.0
        while not self._stopping:
            try:
                messages = self._receive()
                self._take_in()  # a request is in the inbox before its call is sent, so before its answer
                for message in messages:
                    if isinstance(message, (Result, Failure)):
                        self._requests.answer(message)
                if self._lost is not None:
                    self._requests.end_all(self._lost)
                if self._requests and time.monotonic() >= next_sweep:
                    self._requests.sweep(time.monotonic())
                    next_sweep = time.monotonic() + SWEEP_S
            except BaseException as error:  # a bug: nobody may wait for an answer that cannot come
                logger.exception("the responder failed; every open request ends")
                self._requests.end_all(ResponderFailed(f"the answer could not be sent ({type(error).__name__}: {error})"))
        self._take_in()
        self._requests.end_all(ShuttingDown("the model was unloaded before the request finished"))

    def _receive(self) -> list[Message]:
        """Wait for something to do; what the function's process has sent."""
        idle = not self._requests and self._inbox.empty()
        ready = {key.fileobj for key, _ in self._selector.select(None if idle else SWEEP_S)}
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wakeup)
        return self._read() if self._connection in ready else []

    def _read(self) -> list[Message]:
        try:
            if data := self._connection.recv(PIECE_BYTES):
                return list(self._decoder.feed(data))
            reason = "it ended"
        except (OSError, WireError) as error:
            reason = str(error)
        self._selector.unregister(self._connection)
        self._lost = FunctionUnavailable(f"the process that runs the function is gone ({reason})")
        logger.error("%s; every request is answered UNAVAILABLE", self._lost)
        return []

    def _take_in(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, Rejected):
                    self._requests.refuse(message.channel, message.error)
                else:
                    self._requests.add(message)
