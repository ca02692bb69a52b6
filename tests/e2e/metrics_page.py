"""Reads Triton's /metrics page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from fastserve.tools.launcher import TritonLauncher

T = TypeVar("T")


def read_metric(server: TritonLauncher, family: str, model: str, **labels: str) -> float:
    """The sum of a family's values for one model over the other labels; 0 when there is none yet."""
    wanted = [f'model="{model}"', *(f'{key}="{value}"' for key, value in labels.items())]
    page = httpx.get(server.metrics_url, trust_env=False).text
    lines = [line for line in page.splitlines() if line.startswith(family + "{") and all(label in line for label in wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def settled(read: Callable[[], T]) -> T:
    """What ``read`` gives when it no longer changes: numbers may be a quarter of a second behind their requests."""
    value = read()
    while True:
        time.sleep(0.5)
        before, value = value, read()
        if value == before:
            return value


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until ``condition`` held; fails after ``timeout_s``."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"not so within {timeout_s} s"
        time.sleep(0.01)
    return time.monotonic() - start
