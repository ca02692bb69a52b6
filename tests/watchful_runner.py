"""A stand-in for the model that also sees to it that blocks of the prefix cache stay as they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastserve.core.block_pool import BlockPool
from fastserve.worker.batch import ForwardBatch
from fastserve.worker.kv_cache import KVCache
from tests.hashing_runner import HashingRunner


class WatchfulRunner(HashingRunner):
    """Fails when a block is written that can be found. ``pool``: the engine's, once there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(0, 1)
        self.contents: dict[bytes, list[float]] = {}
        """What blocks held when they could be found first, by digest."""

    def run(self, batch: ForwardBatch, kv_cache: KVCache) -> npt.NDArray[np.float32]:
        written = {slot // kv_cache.block_size for slot in batch.slot_mapping.tolist() if slot >= 0}
        if found := written & self.pool.digests().keys():
            raise AssertionError(f"blocks {sorted(found)} can be found, and are written")
        return super().run(batch, kv_cache)

    def check_contents(self, kv_cache: KVCache) -> None:
        """A block that can be found holds what every block with that digest has held, since the first could be found."""
        for block, digest in self.pool.digests().items():
            held = kv_cache.keys[0][block, 0, 0].tolist()
            assert self.contents.setdefault(digest, held) == held, f"block {block} holds {held}"
