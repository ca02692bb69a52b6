"""FastServe in a real Triton as in ``fastserve_triton_peer.py``, but clients ask for :data:`STREAM_INTERVAL` tokens a response.

A row of its own: the others hand out every token as it comes, which costs the server, the client and the thread that answers a
response each.
"""

from __future__ import annotations

import argparse
from typing import Any

import fastserve_peer
import fastserve_triton_peer
import peer
from rows import STREAM_INTERVAL
from workload import Item


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    return fastserve_triton_peer.measure(arguments, items, STREAM_INTERVAL)


if __name__ == "__main__":
    peer.main(fastserve_peer.convert, measure, ("fp32", "int8"))
