"""Copies between the pool and the tiers below it, as an iteration sees them: begun, running beside it, or waited for."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Protocol

from fastserve.core.plan import StepPlan
from fastserve.core.scheduler import Scheduler
from fastserve.core.swapper import Transfer, TransferEnded


class Copier(Protocol):
    """Moves the bytes. What a transfer names is its own from ``start`` until it is in what ``ended`` returns."""

    def start(self, transfers: Items[Transfer]) -> None:
        """Copy, in this order; does not block."""

    def ended(self, *, wait: bool) -> list[TransferEnded]:
        """What has ended since the last call, each named once. ``wait``: block until there is something; only when a transfer
        is in flight."""

    def stop(self) -> None:
        """Nothing more will be started."""


class Transfers:
    """Between a scheduler and who copies for it; on the engine thread."""

    def __init__(self, scheduler: Scheduler, copier: Copier, before_wait: Callable[[], None] = lambda: None) -> None:
        """``before_wait``: called before anything waits for a copy."""
        self._scheduler = scheduler
        self._copier = copier
        self._before_wait = before_wait
        self.stop = copier.stop
        self.waited = 0
        """How often an iteration had to wait for copies."""

    @property
    def in_flight(self) -> bool:
        return bool(self._scheduler.swapper.in_flight)

    def collect(self, *, wait: bool = False) -> bool:
        """Settle what has ended; ``wait``: at least one. Whether all went well."""
        if not self.in_flight:
            return True
        if wait:
            self._before_wait()
        all_ended = self._copier.ended(wait=wait)
        for ended in all_ended:
            self._scheduler.end_swap(ended)
        return all(ended.error is None for ended in all_ended)

    def begin(self, plan: StepPlan) -> bool:
        """Begin what ``plan`` moves, and wait where nothing can go on without. Whether its chunks can be run now: if not, what
        there is to run is another plan's business. Raises RuntimeError for a plan that does nothing at all."""
        begun = self._scheduler.begin_swaps(plan)
        if begun:
            self._copier.start(begun)
        well = True
        if begun and not self._scheduler.swapper.proactive:
            self.waited += 1
            while self.in_flight:
                well = self.collect(wait=True) and well
        if plan.chunks:
            return well
        for sequence in plan.preempted:
            self._scheduler.preempt(sequence)
        if self.in_flight:
            self.waited += 1
            self.collect(wait=True)
        elif not (begun or plan.preempted):
            raise RuntimeError(f"{len(self._scheduler)} unfinished requests, but none can proceed")
        return False


class NoCopier:
    """Where there are no tiers."""

    def start(self, transfers: Items[Transfer]) -> None:
        raise RuntimeError(f"no tier is there for {transfers}")

    def ended(self, *, wait: bool) -> list[TransferEnded]:
        del wait
        return []

    def stop(self) -> None:
        """There is nothing to stop."""
