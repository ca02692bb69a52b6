"""The order in which sequences are served; one module for each policy."""

from __future__ import annotations

from collections.abc import Callable

from fastserve.core.policy.fcfs import FirstComeFirstServed
from fastserve.core.policy.protocol import Policy

POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": FirstComeFirstServed}
"""By the name used in configuration; the keys equal ``fastserve.config.POLICIES``, which a test checks."""

__all__ = ["POLICIES", "Policy"]
