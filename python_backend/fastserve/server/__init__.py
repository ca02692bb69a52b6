"""``FastServeServer``: serving from a Python program."""

from fastserve.server.fast_serve_server import FastServeServer as FastServeServer
