"""Ids of the KV pool's blocks: who may write where. The bytes are in ``worker/kv_cache.py``.

::

                 allocate                       register
    blank ────────────────────► in use ────────────────────► in use, findable by its digest
      ▲                           │                             │              ▲
      ├───────────────────────────┘ released by its last holder │              │ shared
      │           evicted, the longest idle first               ▼              │
      └──────────────────────────────────────────────────── cached ────────────┘

Blank and cached blocks are *free*: nobody holds them and :meth:`BlockPool.allocate` may hand them out, the blank ones first. A
digest is given by ``core/prefix_cache.py`` and stands for all that a block holds; a block that has one is never written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

WHOLE_PREFIXES = 1024
"""Prefixes that are found again at once: prompts that come up again and again, and whoever waits to be let in."""


class BlockPool:
    """Allocates block ids 0..num_blocks-1 with reference counts; every operation is O(1) per block.

    The most recently freed blank block is handed out first: its memory is the likeliest to be in a cache.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the longest idle first
        self._ref_counts = [0] * num_blocks
        self._blocks: dict[bytes, int] = {}  # by digest
        self._digests: dict[int, bytes] = {}  # by block; the inverse of _blocks
        self._whole: dict[bytes, tuple[int, ...]] = {}  # prefixes found since a digest was last forgotten, by their last digest

    @property
    def num_free(self) -> int:
        """Blocks that :meth:`allocate` can hand out, the cached ones among them."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Free blocks whose contents can still be found."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens take."""
        return -(-num_tokens // self.block_size)

    def blocks_missing(self, num_held: int, num_tokens: int) -> int:
        """Blocks that a holder of ``num_held`` blocks lacks to hold ``num_tokens`` tokens."""
        return max(0, -(-num_tokens // self.block_size) - num_held)

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with a reference count of 1 and no digest. Raises MemoryError, with nothing allocated, when too few
        are free."""
        if count > self.num_free:
            raise MemoryError(f"{count} blocks wanted, {self.num_free} of {self.num_blocks} are free")
        taken = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._blocks[self._digests.pop(block)]
        self._whole.clear()
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks that are in use or cached."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                if block not in self._cached:
                    raise ValueError(f"block {block} is free and cannot be shared")
                del self._cached[block]
            self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block; one without references is free again, and cached if it has a digest. Of blocks that
        are released together the first is evicted first."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._ref_counts[block] -= 1
            if self._ref_counts[block]:
                continue
            if block in self._digests:
                self._cached[block] = None
            else:
                self._blank.append(block)

    def register(self, block: int, digest: bytes) -> None:
        """Make a block in use, whose contents are complete, findable. A digest that another block has keeps that one: the
        contents are the same."""
        if self._ref_counts[block] == 0:
            raise ValueError(f"block {block} is free and cannot be registered")
        if digest not in self._blocks:
            self._blocks[digest] = block
            self._digests[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block with these contents."""
        return self._blocks.get(digest)

    def find_prefix(self, digests: Sequence[bytes]) -> tuple[int, ...]:
        """The blocks with these contents, up to the first that is not there. ``digests``: each stands for all before it, too."""
        if not digests:
            return ()
        if (whole := self._whole.get(digests[-1])) is not None:
            return whole
        blocks = list[int]()
        try:  # no line of Python for each block
            blocks.extend(map(self._blocks.__getitem__, digests))
        except KeyError:
            return tuple(blocks)  # those before it
        if len(self._whole) == WHOLE_PREFIXES:
            self._whole.clear()
        self._whole[digests[-1]] = whole = tuple(blocks)
        return whole

    def digest(self, block: int) -> bytes | None:
        """What a block can be found by; None when it cannot."""
        return self._digests.get(block)

    def forget(self) -> None:
        """Take every digest away: nothing computed so far is found again."""
        self._blank.extend(self._cached)
        self._cached.clear()
        self._blocks.clear()
        self._digests.clear()
        self._whole.clear()

    def ref_count(self, block: int) -> int:
        """How many block tables it stands in."""
        return self._ref_counts[block]

    def idle(self, blocks: Iterable[int]) -> list[int]:
        """Those that nobody holds."""
        counts = self._ref_counts
        return [block for block in blocks if not counts[block]]

    def ref_counts(self) -> list[int]:
        """A copy, by block id."""
        return self._ref_counts.copy()

    def whole_prefixes(self) -> tuple[tuple[bytes, tuple[int, ...]], ...]:
        """A snapshot of the prefixes that are found at once: the last digest and the blocks of each."""
        return tuple(self._whole.items())

    def blank_blocks(self) -> tuple[int, ...]:
        """A snapshot of the free blocks without digests."""
        return tuple(self._blank)

    def cached_blocks(self) -> tuple[int, ...]:
        """A snapshot of the free blocks with digests, in the order of eviction."""
        return tuple(self._cached)

    def digests(self) -> dict[int, bytes]:
        """A snapshot of what can be found, by block."""
        return dict(self._digests)
