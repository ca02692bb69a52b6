"""FastServe in a real Triton as in ``fastserve_triton_peer.py``, but clients ask for a response for each token.

A row of its own: without being asked, a server with many streams sends what comes within some milliseconds together.
"""

from __future__ import annotations

import argparse
from typing import Any

import fastserve_peer
import fastserve_triton_peer
import peer
from workload import Item


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    return fastserve_triton_peer.measure(arguments, items, stream_interval=1)


if __name__ == "__main__":
    peer.main(fastserve_peer.convert, measure, ("fp32", "int8"))
