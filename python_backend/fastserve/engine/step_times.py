"""Where the time of iterations goes."""

from __future__ import annotations

from collections.abc import Callable

PHASES = ("plan", "reserve", "pack", "run", "sample", "commit")
"""Of an iteration, in order. "run" is ONNX Runtime; the others are Python's share."""


class StepTimes:
    """Seconds by phase, summed up over iterations. Owned by the engine thread.

    A phase lasts from the end of the one before, so that nothing is left out; what failed counts for the phase that ends next.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock``: seconds, monotonic."""
        self._clock = clock
        self._mark = 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def begin(self, now: float) -> None:
        """An iteration begins with its first phase."""
        self._mark = now

    def end(self, phase: str) -> None:
        """``phase`` is over, the next one begins."""
        now = self._clock()
        self.seconds[phase] += now - self._mark
        self._mark = now
