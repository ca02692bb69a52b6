"""A stand-in for the swap thread that shows who uses a block or a slot too early."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from fastserve.core.swapper import Tier, Transfer, TransferEnded
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.kv_tiers import KVTiers


class LateCopier:
    """A copier on the engine's own thread that moves bytes as late as may be, when it says so: whoever uses a block or a slot
    before its copy has ended destroys or misses them. Like the real one it keeps the order."""

    def __init__(self, kv_cache: KVCache, num_slots: Mapping[Tier, int], chance: random.Random) -> None:
        self.tiers = KVTiers(list(kv_cache.arrays().values()), num_slots)
        self._chance = chance
        self._begun: list[Transfer] = []
        self.failures = 0
        """So many of the next transfers fail."""

    def start(self, transfers: Sequence[Transfer]) -> None:
        self._begun += transfers

    def ended(self, *, wait: bool) -> list[TransferEnded]:
        assert self._begun or not wait, "nobody can wait for what was not begun"
        count = self._chance.randint(min(wait, len(self._begun)), len(self._begun))
        return [self._end(self._begun.pop(0)) for _ in range(count)]

    def stop(self) -> None:
        self.tiers.close()

    def _end(self, transfer: Transfer) -> TransferEnded:
        if self.failures:
            self.failures -= 1
            return TransferEnded(transfer.number, 0.001, "injected")
        self.tiers.copy(transfer)
        return TransferEnded(transfer.number, 0.001)
