"""Servers that live in a test: a handler behind a free port of this machine, and their orderly end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalHttpServer:
    """Serves until :meth:`close`, every request on a thread of its own."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        class Quiet(handler):
            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Quiet)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def started(make: Callable[[Any], Any]) -> Iterator[Callable[[Any], Any]]:
    """For fixtures: a function that makes a server of what it is given; all of them are closed in the end."""
    servers: list[Any] = []

    def start(script: Any) -> Any:
        servers.append(make(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
