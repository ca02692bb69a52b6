"""The way between the KV pool and a tier below it, as time: transfers go one after the other, beside the steps."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

from fastserve.core.swapper import Transfer, TransferEnded


@dataclasses.dataclass(slots=True)
class SimulatedClock:
    """Seconds since the simulation began."""

    now: float = 0.0


class Link:
    """Implements ``core.transfers.Copier``. Who waits for it moves the clock."""

    def __init__(self, clock: SimulatedClock, block_s: float) -> None:
        """``block_s``: what the copy of a block takes."""
        self.waited_s = 0.0
        self._clock = clock
        self._block_s = block_s
        self._idle_at = 0.0
        self._begun: deque[tuple[float, TransferEnded]] = deque()

    def start(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            seconds = len(transfer.blocks) * self._block_s
            self._idle_at = max(self._idle_at, self._clock.now) + seconds
            self._begun.append((self._idle_at, TransferEnded(transfer.number, seconds)))

    def ended(self, *, wait: bool) -> list[TransferEnded]:
        if wait and (late := self._begun[0][0] - self._clock.now) > 0:
            self.waited_s += late
            self._clock.now += late
        found = []
        while self._begun and self._begun[0][0] <= self._clock.now:
            found.append(self._begun.popleft()[1])
        return found

    def stop(self) -> None:
        """There is nothing to stop."""
