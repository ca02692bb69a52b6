"""Room in the pool for those who wait, as the planner sees it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from fastserve.core.beam_search import BeamSearch
from fastserve.core.block_pool import BlockPool
from fastserve.core.candidate import Candidate
from fastserve.core.sequence import Sequence


class Held(NamedTuple):
    """Who holds blocks, and the beam searches that go on, which may have beams that rest."""

    sequences: Collection[Sequence]
    searches: Iterable[BeamSearch]


class PoolRoom:
    """What the sequences selected so far leave of the pool. A block that several of them hold counts once."""

    def __init__(self, pool: BlockPool, num_holders: int) -> None:
        """``num_holders``: sequences that hold blocks."""
        self._pool = pool
        self._num_free = pool.num_free
        self._others = num_holders  # that hold blocks and are not selected
        self._idle: set[int] = set()  # cached blocks that nobody holds and a selected sequence takes over
        self._taken: set[int] = set()  # blocks of those that are selected, but for:
        self._uncounted: list[Collection[int]] = []
        self._most_taken = 0  # as if no two of those that are selected shared a block

    def add(self, candidate: Candidate, arriving: tuple[int, ...]) -> None:
        """Select a sequence, which holds blocks, takes over cached ones or has those that arrive from a tier below."""
        if candidate.sequence.block_table:
            self._others -= 1
            self._take(candidate.sequence.block_table)
        elif blocks := candidate.cached or arriving:
            self._take(blocks)
            if candidate.idle:
                self._idle.update(candidate.idle)

    def _take(self, blocks: Collection[int]) -> None:
        self._uncounted.append(blocks)
        self._most_taken += len(blocks)

    def fits(self, num_blocks: int, candidate: Candidate) -> bool:
        """Whether there is room for so many new blocks beside the candidate's cached ones, if everybody else gives way."""
        idle = len(set(candidate.idle) - self._idle) if candidate.idle else 0
        if num_blocks <= self._num_free - len(self._idle) - idle:
            return True
        if not self._others:
            return False
        if num_blocks <= self._pool.num_blocks - self._most_taken - len(candidate.cached):
            return True
        self._taken.update(*self._uncounted)
        self._uncounted.clear()
        taken = len(self._taken) + len(set(candidate.cached) - self._taken)
        return num_blocks <= self._pool.num_blocks - taken
