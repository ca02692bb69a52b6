"""The Unix socket between the stub and the user's process: only this user's processes may use it, on both ends."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from fastserve.errors import ErrorCode, FastServeError
from fastserve.functions.wire import WIRE_VERSION, Decoder, Hello, WireError, encode

SOCKET_FILE = "function.sock"
PIECE_BYTES = 1 << 18
"""Read at once: the frames that came together are handled together."""

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_HANDSHAKE_S = 30.0
_BACKLOG = 8


class FunctionUnavailable(FastServeError):
    """The process that runs the function cannot be reached, is gone, or is about to go."""

    code = ErrorCode.UNAVAILABLE


def listen(directory: Path) -> socket.socket:
    """A listening socket in ``directory``, which must be the user's alone (mode 0700). Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _short_name(directory) as name:
            listener.bind(name)
        (directory / SOCKET_FILE).chmod(0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(directory: Path) -> socket.socket:
    """A connection to the process that listens in ``directory``, both having said hello.

    Raises :class:`FunctionUnavailable` when nobody answers there and :class:`WireError` for another version.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_HANDSHAKE_S)
    try:
        with _short_name(directory) as name:
            connection.connect(name)
        check_peer(connection)
        connection.sendall(encode(Hello()))
        _await_hello(connection)
    except OSError as error:
        connection.close()
        raise FunctionUnavailable(
            f"the process that runs the function does not answer at {directory / SOCKET_FILE} ({error})"
        ) from None
    except BaseException:
        connection.close()
        raise
    connection.settimeout(None)
    return connection


def check_peer(connection: socket.socket) -> None:
    """Raises :class:`WireError` when another user's process is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.getuid():
        raise WireError(f"the function's socket is used by user {user}, allowed: {os.getuid()}")


def check_hello(message: object) -> None:
    """Raises :class:`WireError` unless ``message`` is a greeting of this version."""
    if not isinstance(message, Hello):
        raise WireError(f"got {type(message).__name__}, allowed: Hello first")
    if message.version != WIRE_VERSION:
        raise WireError(
            f"the function's process and the server speak different versions ({message.version} and {WIRE_VERSION}); "
            "is another FastServe installed where the server runs?"
        )


def _await_hello(connection: socket.socket) -> None:
    decoder = Decoder()
    while data := connection.recv(PIECE_BYTES):
        for message in decoder.feed(data):
            check_hello(message)
            return
    raise ConnectionResetError("it hung up")


@contextlib.contextmanager
def _short_name(directory: Path) -> Iterator[str]:
    """The socket's path in a form that fits a socket address, which holds about a hundred bytes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_FILE}"
    finally:
        os.close(descriptor)
