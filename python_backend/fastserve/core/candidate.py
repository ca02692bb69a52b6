"""A sequence that may take part in an iteration, and what the plan made so far does to the references to blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from fastserve.core.block_pool import BlockPool
from fastserve.core.sequence import Sequence


@dataclasses.dataclass(slots=True)
class Candidate:
    """It goes on from ``start`` tokens, which are in ``num_held`` blocks of its own or ``cached``."""

    sequence: Sequence
    start: int
    uncomputed: int
    num_held: int
    new_blocks: int
    """To be allocated for all of its tokens, as things were before the plan; a copy of a shared one among them."""
    is_decode: bool
    """Sure of its token. One that is swapped may not run yet; if it does, its token comes out of what prefills share."""
    cached: tuple[int, ...] = ()
    """Blocks that a waiting sequence takes over from the prefix cache."""
    idle: tuple[int, ...] = ()
    """Those of ``cached`` that nobody held before the plan."""


class PlannedReferences:
    """The references to blocks that there will be when what is planned so far is done. Who takes over blocks keeps them: nobody
    more urgent comes after it."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._left: list[int] = []  # references that are not dropped, by block; empty as long as none is
        self._kept: set[int] = set()  # blocks with references that the plan adds
        self._freed: set[int] = set()  # blocks that were held, nobody holds now, and can be found

    def is_shared(self, block: int) -> bool:
        """Whether one that is held has more than one holder."""
        return block in self._kept or (self._left[block] if self._left else self._pool.ref_count(block)) > 1

    def drop(self, blocks: Collection[int]) -> int:
        """Drop one to each; how many blocks have none left."""
        left = self._left = self._left or self._pool.ref_counts()
        for block in blocks:
            left[block] -= 1
        freed = [block for block in blocks if not left[block] and block not in self._kept]
        self._freed.update(block for block in freed if self._pool.digest(block) is not None)
        return len(freed)

    def take_over(self, candidate: Candidate) -> None:
        """Add one to each of its cached blocks."""
        self._kept.update(candidate.cached)
        if self._freed:
            self._freed.difference_update(candidate.cached)

    def num_idle(self, candidate: Candidate) -> int:
        """How many of its cached blocks nobody holds at this point of the plan."""
        idle = len(set(candidate.idle) - self._kept) if candidate.idle else 0
        return idle + len(self._freed.intersection(candidate.cached)) if self._freed else idle

    def shared_write(self, sequence: Sequence) -> int | None:
        """The block that the sequence writes next, if others hold it too: it needs a copy of its own."""
        block = sequence.next_write(self._pool.block_size)
        if block is None or self._pool.ref_count(block) == 1:
            return None
        return block if self.is_shared(block) else None
