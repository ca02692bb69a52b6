"""Addresses and TCP ports of this machine: which are free, which are taken."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import socket

from fastserve.errors import ToolError

ANY_ADDRESS = "0.0.0.0"
_LARGEST = 65535


def port_number(text: str) -> int:
    """The type of a port argument on a command line."""
    port = int(text)
    if not 0 <= port <= _LARGEST:
        raise argparse.ArgumentTypeError(f"got {text}, allowed: 0 to {_LARGEST}")
    return port


def numeric_address(host: str) -> str:
    """The address behind a host name, IPv4 if it has one; "" is every address. Raises :class:`ToolError` when unknown."""
    try:
        found = socket.getaddrinfo(host.strip("[]") or ANY_ADDRESS, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _foreign(host) from None
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def reachable_address(address: str) -> str:
    """Where a client on this machine finds a server that listens on ``address``."""
    with contextlib.suppress(ValueError):  # a name
        if ipaddress.ip_address(address or ANY_ADDRESS).is_unspecified:
            return "::1" if ":" in address else "127.0.0.1"
    return address


def bracketed(address: str) -> str:
    """``address`` as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def free_ports(host: str, count: int) -> list[int]:
    """``count`` different ports nobody listens on now (another process may take one before it is used).

    Raises :class:`ToolError` when ``host`` is not this machine's.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(_family(host))) for _ in range(count)]
        for each in sockets:
            try:
                each.bind((host, 0))
            except OSError:
                raise _foreign(host) from None
        return [each.getsockname()[1] for each in sockets]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now. Raises :class:`ToolError` when ``host`` is not this machine's."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ToolError(f"port {port} needs more rights than this user has; choose one above 1023") from None
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise _foreign(host) from None
            return False
        return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _foreign(host: str) -> ToolError:
    return ToolError(f"{host} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all")
