"""Numbers on their way to the metrics page: kept together for a moment, because telling Triton each one is a round trip."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from fastserve.engine.stats import EngineStats

logger = logging.getLogger(__name__)

REPORT_S = 0.1
"""Seconds between two reports. A small model would otherwise spend more time on its numbers than on its answers."""
BUSY_REPORT_S = 0.25
"""The same while somebody waits for an answer. Being longer, it keeps the numbers of earlier requests out of the way of a
request that has just come."""


class MetricsSink(Protocol):
    """Where numbers go. Every method may block on the server."""

    def update(self, stats: EngineStats) -> None: ...
    def count_endings(self, ending: str, count: int) -> None: ...


class MetricsReport:
    """The newest snapshot and the endings that the sink does not know yet. Owned by the responder; never raises."""

    def __init__(self, sink: MetricsSink, clock: Callable[[], float]) -> None:
        """``clock``: seconds, monotonic."""
        self._sink = sink
        self._clock = clock
        self._last = clock() - BUSY_REPORT_S
        self._stats: EngineStats | None = None
        self._endings: Counter[str] = Counter()

    @property
    def has_news(self) -> bool:
        return self._stats is not None or bool(self._endings)

    def show(self, stats: EngineStats) -> None:
        """A newer snapshot takes the place of one that was not sent yet."""
        self._stats = stats

    def count(self, ending: str) -> None:
        """One request ended."""
        self._endings[ending] += 1

    def send_when_due(self, *, busy: bool) -> None:
        """Send the news, if there is any and the last report is long enough ago. ``busy``: whether somebody waits."""
        if self.has_news and self._clock() - self._last >= (BUSY_REPORT_S if busy else REPORT_S):
            self.send()
            self._last = self._clock()

    def send(self) -> None:
        """Send the news."""
        for ending, count in self._endings.items():
            self._guard(functools.partial(self._sink.count_endings, ending, count), "endings could not be counted")
        self._endings.clear()
        if self._stats is not None:
            self._guard(functools.partial(self._sink.update, self._stats), "metrics could not be updated")
            self._stats = None

    def _guard(self, action: Callable[[], None], problem: str) -> None:
        """Do what Triton may refuse; no answer may depend on it."""
        try:
            action()
        except Exception:
            logger.exception(problem)
