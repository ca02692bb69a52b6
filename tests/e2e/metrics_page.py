"""Reads Triton's /metrics page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from fastserve.tools.launcher import TritonLauncher

T = TypeVar("T")

PATIENCE_S = 120.0
"""What should take a moment may take this long: the machine of the tests may be busy with other things."""
LONGEST_LOOK_S = 5.0


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


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> float:
    """Seconds until ``condition`` held; fails after ``timeout_s``. A look at it counts for LONGEST_LOOK_S at most: a machine that
    stood still meanwhile was given no chance."""
    start = looked = time.monotonic()
    waited = 0.0
    while not condition():
        assert waited < timeout_s, f"not so within {timeout_s} s"
        time.sleep(0.01)
        waited, looked = waited + min(time.monotonic() - looked, LONGEST_LOOK_S), time.monotonic()
    return time.monotonic() - start
