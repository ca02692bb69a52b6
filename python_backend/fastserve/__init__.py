"""FastServe: iteration-level scheduling and a paged KV memory pool for ONNX models in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastserve.server import FastServeServer as FastServeServer

__version__ = "0.1.0"
__all__ = ["FastServeServer", "__version__"]


def __getattr__(name: str) -> object:
    """``FastServeServer`` is imported when it is asked for: every stub imports this package, and needs none of it."""
    if name == "FastServeServer":
        from fastserve.server import FastServeServer

        return FastServeServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
