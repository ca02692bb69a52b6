"""A sequence that may take part in an iteration, and what the plan made so far does to the references to blocks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

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

    @property
    def takes_nothing(self) -> bool:
        """Whether it needs no block but its own, which is so of most decodes."""
        return not self.new_blocks and not self.cached


class PlannedReferences:
    """The references to blocks that there will be when what is planned so far is done."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._dropped: Counter[int] = Counter()  # references that the plan drops, less those it adds, but for:
        self._uncounted: list[tuple[int, ...]] = []  # blocks to each of which it adds one
        self._taken_over: set[int] = set()  # of these, those that nobody held

    def count(self, block: int) -> int:
        """Of one block."""
        self._count_added()
        return self._pool.ref_count(block) - self._dropped[block]

    def drop(self, blocks: Iterable[int]) -> int:
        """Drop one to each; how many blocks have none left."""
        self._count_added()
        freed = 0
        for block in blocks:
            self._dropped[block] += 1
            freed += self._dropped[block] == self._pool.ref_count(block)
        return freed

    def take_over(self, candidate: Candidate) -> None:
        """Add one to each of its cached blocks."""
        if candidate.cached:
            self._uncounted.append(candidate.cached)
            self._taken_over.update(candidate.idle)

    def num_idle(self, candidate: Candidate) -> int:
        """How many of its cached blocks nobody holds at this point of the plan."""
        if not self._dropped:
            return len(set(candidate.idle) - self._taken_over) if candidate.idle else 0
        self._count_added()
        return sum(self._dropped[block] == self._pool.ref_count(block) for block in candidate.cached)

    def shared_write(self, sequence: Sequence) -> int | None:
        """The block that the sequence writes next, if others hold it too: it needs a copy of its own."""
        block = sequence.next_write(self._pool.block_size)
        if block is None or self._pool.ref_count(block) == 1:
            return None
        return block if self.count(block) > 1 else None

    def _count_added(self) -> None:
        for blocks in self._uncounted:
            self._dropped.subtract(blocks)
        self._uncounted.clear()
