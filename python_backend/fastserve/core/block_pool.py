"""Ids of the KV pool's blocks: who may write where. The bytes are in ``worker/kv_cache.py``."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Allocates block ids 0..num_blocks-1 with reference counts; every operation is O(1) per block.

    The most recently freed block is handed out first: its memory is the likeliest to be in a cache.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens take."""
        return -(-num_tokens // self.block_size)

    def blocks_missing(self, num_held: int, num_tokens: int) -> int:
        """Blocks that a holder of ``num_held`` blocks lacks to hold ``num_tokens`` tokens."""
        return max(0, self.blocks_for(num_tokens) - num_held)

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with a reference count of 1. Raises MemoryError, with nothing allocated, when too few are free."""
        if count > len(self._free):
            raise MemoryError(f"{count} blocks wanted, {len(self._free)} of {self.num_blocks} are free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks that are in use."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                raise ValueError(f"block {block} is free and cannot be shared")
            self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block; a block without references is free again."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free.append(block)

    def ref_count(self, block: int) -> int:
        """How many block tables it stands in."""
        return self._ref_counts[block]

    def ref_counts(self) -> tuple[int, ...]:
        """A snapshot, by block id."""
        return tuple(self._ref_counts)

    def free_blocks(self) -> tuple[int, ...]:
        """A snapshot of the free list."""
        return tuple(self._free)
