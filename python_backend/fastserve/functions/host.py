"""The user's side: listens for the stub, gathers what it asks for into batches, and runs the function on worker threads."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from fastserve.errors import ErrorCode
from fastserve.functions import local_socket
from fastserve.functions.call_queue import CallQueue, WaitingCall
from fastserve.functions.function import ServedFunction
from fastserve.functions.wire import Call, Decoder, Drop, Failure, FrameTooLarge, Hello, Result, WireError, encode

logger = logging.getLogger(__name__)

_STOPPING = "the server is stopping"
_LISTEN_S = 2.0
"""What a stub gets to take the last answers, before it is hung up on."""
_PAUSE_S = 0.5
"""Before connections are accepted again, when one could not be."""


class FunctionHost:
    """Serves one function to every stub that connects.

    Threads: one accepts, one reads each connection, ``num_workers`` run the function and send what came of it. All are
    daemons. Each call that a stub sends is answered once, unless the stub drops it or hangs up.
    """

    def __init__(self, function: ServedFunction, *, batch_size: int, num_workers: int) -> None:
        self._function = function
        self._queue: CallQueue[_Connection] = CallQueue(batch_size)
        self._listener: socket.socket | None = None
        self._closing = threading.Event()
        self._acceptor: threading.Thread | None = None
        self._connections: set[_Connection] = set()
        self._running: dict[int, list[WaitingCall[_Connection]]] = {}  # by worker; who pops a batch answers it
        self._workers = [
            threading.Thread(target=self._work, args=(index,), name=f"fastserve-function-{index}", daemon=True)
            for index in range(num_workers)
        ]

    def start(self, directory: Path) -> None:
        """Listen in ``directory`` (mode 0700, made for this host). Raises OSError."""
        self._listener = local_socket.listen(directory)
        for worker in self._workers:
            worker.start()
        self._acceptor = threading.Thread(
            target=self._accept, args=(self._listener,), name="fastserve-function-accept", daemon=True
        )
        self._acceptor.start()

    def drain(self, timeout_s: float) -> None:
        """Refuse what waits and what still comes; let the function finish what it works on for ``timeout_s`` seconds.

        When this returns, every call has been answered; a stub that does not listen is hung up on. May be called twice.
        """
        impatience = threading.Timer(timeout_s + _LISTEN_S, self._hang_up)  # no write to a stub may wait for ever
        impatience.daemon = True
        impatience.start()
        try:
            self._drain(time.monotonic() + timeout_s)
        finally:
            impatience.cancel()

    def _drain(self, deadline: float) -> None:
        self._refuse(self._queue.close())
        for index, worker in enumerate(self._workers):
            if worker.ident is not None and worker is not threading.current_thread():  # the function itself may stop the server
                worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                self._refuse(self._running.pop(index, ()))

    def close(self) -> None:
        """Hang up. Call :meth:`drain` first, or the stubs say UNAVAILABLE to whoever still waits. May be called twice."""
        self._queue.close()
        self._closing.set()
        if self._listener is not None and self._acceptor is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._acceptor.join()
        self._hang_up()

    def _hang_up(self) -> None:
        for connection in list(self._connections):
            connection.hang_up()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while not self._closing.is_set():
                try:
                    accepted, _ = listener.accept()
                except OSError as error:  # closed; or too many open files, which may pass
                    if not self._closing.wait(_PAUSE_S):
                        logger.error("a connection to the function cannot be accepted now: %s", error)
                    continue
                connection = _Connection(accepted)
                self._connections.add(connection)  # before anybody may hang up on all
                threading.Thread(target=self._serve, args=(connection,), name="fastserve-function-read", daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.check_peer()
            self._read(connection)
        except WireError as error:
            logger.error("a connection to the function was ended: %s", error)
        except OSError:  # hung up, by them or by us
            pass
        finally:
            self._connections.discard(connection)
            self._queue.drop_all(connection)
            connection.close()

    def _read(self, connection: _Connection) -> None:
        greeted = False
        for messages in connection.messages():
            if not greeted:
                connection.send([Hello()])
                local_socket.check_hello(messages.pop(0))
                greeted = True
            calls = [WaitingCall(connection, message) for message in messages if isinstance(message, Call)]
            if not self._queue.put(calls):
                self._refuse(calls)
            for message in messages:
                if isinstance(message, Drop):
                    self._queue.drop(connection, message.call_id)
                elif not isinstance(message, Call):
                    raise WireError(f"got {type(message).__name__}, allowed: Call or Drop")

    def _work(self, index: int) -> None:
        while (batch := self._queue.take()) is not None:
            self._running[index] = batch
            answers = self._function.run([item.call for item in batch])
            if self._running.pop(index, None) is not None:
                self._answer(zip((item.origin for item in batch), answers, strict=True))

    def _refuse(self, calls: Iterable[WaitingCall[_Connection]]) -> None:
        self._answer((item.origin, Failure(item.call.call_id, ErrorCode.UNAVAILABLE, _STOPPING)) for item in calls)

    def _answer(self, answers: Iterable[tuple[_Connection, Result | Failure]]) -> None:
        by_connection: dict[_Connection, list[Result | Failure]] = {}
        for connection, answer in answers:
            by_connection.setdefault(connection, []).append(answer)
        for connection, messages in by_connection.items():
            connection.send(messages)


class _Connection:
    """One stub. Read by one thread, written by any."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self._writing = threading.Lock()

    def check_peer(self) -> None:
        """Raises WireError when it is another user's."""
        local_socket.check_peer(self._socket)

    def messages(self) -> Iterable[list[Hello | Call | Drop | Result | Failure]]:
        """What came together, until the other side hangs up. Raises WireError or OSError."""
        decoder = Decoder()
        while data := self._socket.recv(local_socket.PIECE_BYTES):
            if messages := list(decoder.feed(data)):
                yield messages

    def send(self, messages: Iterable[Hello | Result | Failure]) -> None:
        """Blocks while the stub is slower than the function; nothing happens when it has hung up."""
        frames = b"".join(map(_frame, messages))
        with self._writing, contextlib.suppress(OSError):
            self._socket.sendall(frames)

    def hang_up(self) -> None:
        """Ends every read and write, from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """By the thread that reads, when it ends."""
        self.hang_up()
        with self._writing:
            self._socket.close()


def _frame(message: Hello | Result | Failure) -> bytes:
    try:
        return encode(message)
    except FrameTooLarge as error:
        assert isinstance(message, Result)  # all other messages are short
        return encode(Failure(message.call_id, ErrorCode.INTERNAL, f"the function's results are too large: {error}"))
