"""Numbers on their way to the metrics page: kept together for a moment, because telling Triton each one is a round trip."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from fastserve.engine.stats import EngineStats

logger = logging.getLogger(__name__)

REPORT_S = 0.1
"""Seconds between two reports. A small model would otherwise spend more time on its numbers than on its answers."""
BUSY_REPORT_S = 0.25
"""The same while somebody waits for an answer. Being longer, it keeps the numbers of earlier requests out of the way of a
request that has just come."""


class MetricsSink(Protocol):
    """Where numbers go. Each may block on the server."""

    def update(self, stats: EngineStats) -> Iterator[None]:
        """Shows a snapshot, one number in each step of the iterator."""

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
        self._sending: Iterator[None] | None = None  # what is left of a report that was begun

    @property
    def has_news(self) -> bool:
        return self._sending is not None or self._stats is not None or bool(self._endings)

    def show(self, stats: EngineStats) -> None:
        """A newer snapshot takes the place of one that was not sent yet."""
        self._stats = stats

    def count(self, ending: str) -> None:
        """One request ended."""
        self._endings[ending] += 1

    def send_when_due(self, *, busy: bool, called_away: Callable[[], bool]) -> None:
        """Send the news, if there is any and the last report is long enough ago. ``busy``: whether somebody waits.
        ``called_away``: asked after each number; the rest follows in the next calls, at least one number in each."""
        if self._sending is None:
            if not self.has_news or self._clock() - self._last < (BUSY_REPORT_S if busy else REPORT_S):
                return
            self._sending = self._numbers()
        for _ in self._sending:
            if called_away():
                return
        self._sending = None
        self._last = self._clock()

    def send(self) -> None:
        """Send all there is."""
        for _ in itertools.chain(self._sending or (), self._numbers()):
            pass
        self._sending = None

    def _numbers(self) -> Iterator[None]:
        """Sends the news, one number in each step."""
        endings, self._endings = self._endings, Counter()
        stats, self._stats = self._stats, None
        for ending, count in endings.items():
            with _logged("endings could not be counted"):
                self._sink.count_endings(ending, count)
            yield
        if stats is not None:
            with _logged("metrics could not be updated"):
                yield from self._sink.update(stats)


@contextlib.contextmanager
def _logged(problem: str) -> Iterator[None]:
    """Around what Triton may refuse; no answer may depend on it."""
    try:
        yield
    except Exception:
        logger.exception(problem)
