"""Finds blocks by what they hold, so that a sequence that begins with tokens computed before takes them over.

::

    tokens     t0 ... t15          t16 ... t31         t32 ... t40
    digests    d0 = H(root, them)  d1 = H(d0, them)    the block is not full: it has none

A digest stands for every token up to the end of its block, because keys and values depend on all of them; so one look-up a
block finds the longest known prefix. The root stands for the model and for those who may share. H is BLAKE2b with 32 bytes:
nobody finds two texts with the same digest, by accident or on purpose.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import NamedTuple

from fastserve.core.block_pool import BlockPool
from fastserve.core.request import Request
from fastserve.core.sequence import Sequence

DIGEST_BYTES = 32


class CachedPrefix(NamedTuple):
    """The blocks a waiting sequence can take over, and how many of its tokens it need not compute then.

    That is all the blocks hold, or one token less: the last token is run again for its logits, without being written."""

    blocks: tuple[int, ...] = ()
    num_tokens: int = 0


NOTHING = CachedPrefix()


class PrefixCache:
    """Which contents are in which block of a pool. Lives with the scheduler on the engine thread."""

    def __init__(self, pool: BlockPool, *, mode: str = "on", identity: str = "") -> None:
        """``mode``: "on", "per_tenant" (only requests of the same tenant share) or "off" (nothing is ever found).
        ``identity``: of the model and of how its keys and values are stored."""
        self.pool = pool
        self._enabled = mode != "off"
        self._per_tenant = mode == "per_tenant"
        self._identity = identity
        self._pack = struct.Struct(f"<{pool.block_size}I").pack
        self.num_queried_tokens = 0
        """Of the sequences that began."""
        self.num_hit_tokens = 0
        """Of these, the tokens that were not computed."""

    def prepare(self, sequence: Sequence) -> None:
        """Work out the digests of a new sequence's full blocks: they are wanted when it is computed at the latest, and who looks
        for it in an iteration has no time for it."""
        if self._enabled:
            self._complete(sequence, sequence.num_tokens // self.pool.block_size)

    def match(self, sequence: Sequence) -> CachedPrefix:
        """The longest prefix of a sequence without blocks that is in the pool. Changes nothing (but keeps digests)."""
        if not self._enabled:
            return NOTHING
        size, num_tokens = self.pool.block_size, sequence.num_tokens
        # Where rows of the prompt are wanted, the tokens are computed from the first of those rows on.
        known, wanted = sequence.num_prompt_logprobs_known, sequence.num_prompt_logprobs
        number = (num_tokens if known == wanted else known) // size
        digests = sequence.block_digests
        if len(digests) < number:
            self._complete(sequence, number)
        blocks = self.pool.find_prefix(digests if len(digests) == number else digests[:number])
        return CachedPrefix(blocks, min(len(blocks) * size, num_tokens - 1)) if blocks else NOTHING

    def register(self, sequence: Sequence, start: int) -> None:
        """Make the blocks findable that became full since ``start`` tokens were computed. Only of a run that succeeded."""
        size = self.pool.block_size
        first, end = start // size, sequence.num_computed // size
        if first < end and self._enabled:
            for number in range(first, end):
                self.pool.register(sequence.block_table[number], self._digest(sequence, number))

    def count(self, sequence: Sequence) -> None:
        """A sequence began, which had not begun before."""
        if self._enabled:
            self.num_queried_tokens += sequence.num_tokens
            self.num_hit_tokens += sequence.num_prompt_cached

    def reset(self) -> None:
        """Forget everything, counts too."""
        self.pool.forget()
        self.num_queried_tokens = self.num_hit_tokens = 0

    def _digest(self, sequence: Sequence, number: int) -> bytes:
        """Of the sequence's block ``number``, whose tokens are all known."""
        self._complete(sequence, number + 1)
        return sequence.block_digests[number]

    def _complete(self, sequence: Sequence, number: int) -> None:
        """Add those that are missing of the digests of the first ``number`` blocks, whose tokens are all known."""
        digests, size = sequence.block_digests, self.pool.block_size
        if len(digests) >= number:
            return
        parent = digests[-1] if digests else self._root(sequence.request)
        for start in range(len(digests) * size, number * size, size):
            tokens = self._pack(*sequence.tokens(start, start + size))
            digests.append(parent := hashlib.blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest())

    def _root(self, request: Request) -> bytes:
        tenant = request.tenant if self._per_tenant else ""
        origin = json.dumps([self._identity, self.pool.block_size, tenant, request.cache_salt])
        return hashlib.blake2b(origin.encode(), digest_size=DIGEST_BYTES).digest()
