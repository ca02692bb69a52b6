"""TCP ports of this machine: which are free, which are taken."""

from __future__ import annotations

import contextlib
import socket

from fastserve.errors import ToolError


def free_ports(host: str, count: int) -> list[int]:
    """``count`` different ports nobody listens on now (another process may take one before it is used)."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now. Raises :class:`ToolError` when ``host`` is not this machine's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ToolError(f"port {port} needs more rights than this user has; choose one above 1023") from None
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == 99:
                raise ToolError(f"{host} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all") from None
            return False
        return True
