"""Room in the pool for those who wait, as the planner sees it."""

from __future__ import annotations

from collections.abc import Iterable

from fastserve.core.block_pool import BlockPool
from fastserve.core.sequence import Sequence


class PoolRoom:
    """What the sequences selected so far leave of the pool. A block that several of them hold counts once."""

    def __init__(self, pool: BlockPool, num_holders: int) -> None:
        """``num_holders``: sequences that hold blocks."""
        self._pool = pool
        self._others = num_holders  # that hold blocks and are not selected
        self._idle: set[int] = set()  # cached blocks that nobody holds and a selected sequence takes over
        self._taken: set[int] = set()  # blocks of those that are selected, but for:
        self._uncounted: list[Iterable[int]] = []

    def add(self, sequence: Sequence, cached: tuple[int, ...]) -> None:
        """Select a sequence, which holds blocks or takes over the cached ones."""
        if sequence.block_table:
            self._others -= 1
            self._uncounted.append(sequence.block_table)
        elif cached:
            self._uncounted.append(cached)
            self._idle.update(block for block in cached if self._pool.ref_count(block) == 0)

    def fits(self, num_blocks: int, cached: tuple[int, ...]) -> bool:
        """Whether there is room for so many new blocks beside the cached ones, if everybody else gives way."""
        idle = sum(self._pool.ref_count(block) == 0 and block not in self._idle for block in cached)
        if num_blocks <= self._pool.num_free - len(self._idle) - idle:
            return True
        if not self._others:
            return False
        self._taken.update(*self._uncounted)
        self._uncounted.clear()
        taken = len(self._taken) + sum(block not in self._taken for block in cached)
        return num_blocks <= self._pool.num_blocks - taken
