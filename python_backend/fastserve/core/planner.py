"""Fills one iteration: which sequences, how many tokens of each, who must give way.

The rules, in the order of the policy:

1. At most ``max_num_seqs`` sequences. The first waiting sequence that cannot be admitted closes the door behind it, so
   that a small request never overtakes a large one for ever; less urgent sequences that hold blocks go on if there is room.
2. Every sequence that only needs its next token (decode) gets it; prefill chunks share what is left of
   ``max_batched_tokens``. While the pool has room, a long prompt therefore never stalls running decodes (chunked prefill:
   Agrawal et al., 2023).
3. A sequence short of blocks takes them from beams that rest (``beam_search.py``), then from the least urgent sequences that
   hold any, never from a more urgent one.
   The most urgent sequence always proceeds, because a request that could not fit alone was refused on arrival.

A waiting sequence is looked up in the prefix cache when its turn comes, and never those behind it. Blocks it can take over are
not computed, but when nobody holds them they count as taken like new ones.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from fastserve.core.block_pool import BlockPool
from fastserve.core.plan import Chunk, StepPlan
from fastserve.core.policy import Policy
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.sequence import Sequence

PROMPT_ROWS = 64
"""Rows of logits that one iteration computes for the log-probabilities of prompts: a row is as wide as the vocabulary."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepLimits:
    """The budgets of one iteration."""

    max_num_seqs: int
    max_batched_tokens: int


@dataclasses.dataclass(slots=True)
class _Candidate:
    """A sequence that takes part: it goes on from ``start`` tokens, which are in ``num_held`` blocks of its own or ``cached``."""

    sequence: Sequence
    start: int
    uncomputed: int
    num_held: int
    cached: tuple[int, ...]
    """Blocks that a waiting sequence takes over from the prefix cache."""
    new_blocks: int = 0
    """To be allocated for all of its tokens, as things were before the plan."""


class Planner:
    """Builds one :class:`StepPlan` without changing anything; made afresh for each iteration."""

    def __init__(self, limits: StepLimits, cache: PrefixCache, policy: Policy, holders: Collection[Sequence], now: float) -> None:
        """``cache``: of the pool. ``holders``: the sequences that hold blocks."""
        self._limits = limits
        self._cache = cache
        self._pool = cache.pool
        self._policy = policy
        self._now = now
        self._free = self._pool.num_free
        self._prompt_rows = PROMPT_ROWS
        self._given_up: Counter[int] = Counter()  # references to blocks that the plan drops, less those it adds
        self._preempted: dict[Sequence, None] = {}
        self._passed: set[Sequence] = set()  # the sequences planned so far: more urgent than those to come
        self._holders = holders
        self._victims: Iterator[Sequence] | None = None  # Rule 3: who holds blocks, the least urgent first; made when needed

    def plan(self) -> StepPlan:
        selected = self._select()
        decodes = sum(1 for candidate in selected if candidate.uncomputed == 1)
        prefill_budget = self._limits.max_batched_tokens - decodes
        chunks: list[Chunk] = []
        for candidate in selected:
            sequence, uncomputed = candidate.sequence, candidate.uncomputed
            if sequence in self._preempted:
                break  # everything less urgent has given way too
            self._passed.add(sequence)
            wanted = 1 if uncomputed == 1 else min(uncomputed, prefill_budget, self._row_limit(candidate))
            num_tokens = self._take_blocks(candidate, wanted)
            if num_tokens > 0:
                chunks.append(Chunk(sequence, num_tokens, num_tokens == uncomputed, candidate.start, candidate.cached))
                self._prompt_rows -= len(chunks[-1].prompt_rows)
            if num_tokens < wanted:
                break  # only more urgent sequences hold blocks now
            if uncomputed > 1:
                prefill_budget -= num_tokens
        return StepPlan(tuple(chunks), tuple(self._preempted), self._now)

    def _select(self) -> list[_Candidate]:
        """Rule 1: the sequences that take part. A waiting one is admitted while there is room for all of its tokens, for
        what is left of the prompts admitted before it, and for one more block for each of those, lest it be preempted a
        moment later. Room is what more urgent sequences do not hold: the others would give way (rule 3)."""
        selected: list[_Candidate] = []
        room = _Room(self._pool, len(self._holders))
        promised = pending_tokens = 0
        for sequence in self._policy.ordered(self._now):
            if len(selected) == self._limits.max_num_seqs:
                break
            if sequence.rests:
                continue
            candidate = self._candidate(sequence)
            if not sequence.block_table and selected:
                fits = room.fits(candidate.new_blocks + promised + len(selected), candidate.cached)
                if not fits or pending_tokens >= self._limits.max_batched_tokens:
                    return selected + self._other_holders(selected)
            promised += candidate.new_blocks
            room.add(sequence, candidate.cached)
            pending_tokens += candidate.uncomputed
            selected.append(candidate)
        return selected

    def _candidate(self, sequence: Sequence) -> _Candidate:
        start: int = sequence.num_computed
        cached: tuple[int, ...] = ()
        if not sequence.block_table:
            prefix = self._cache.match(sequence)
            start, cached = prefix.num_tokens, prefix.blocks
        num_held = len(sequence.block_table) or len(cached)
        candidate = _Candidate(sequence, start, sequence.num_tokens - start, num_held, cached)
        candidate.new_blocks = self._new_blocks(candidate, candidate.uncomputed)
        return candidate

    def _other_holders(self, selected: list[_Candidate]) -> list[_Candidate]:
        """The most urgent holders of blocks that are not selected, as many as the step can take, the most urgent first."""
        chosen = {candidate.sequence for candidate in selected}
        others = [sequence for sequence in self._holders if sequence not in chosen and not sequence.rests]
        most_urgent = list(self._policy.least_urgent(others, self._now))[::-1]
        return [self._candidate(sequence) for sequence in most_urgent[: self._limits.max_num_seqs - len(selected)]]

    def _take_blocks(self, candidate: _Candidate, num_tokens: int) -> int:
        """Room for the chunk, by preempting less urgent sequences if need be; how many of its tokens get room."""
        if not candidate.new_blocks and not candidate.cached and not self._given_up:
            return num_tokens  # most decodes
        missing = self._blocks_missing(candidate, num_tokens)
        while missing > self._free:
            if self._victims is None:
                self._victims = self._least_urgent_holders()
            victim = next(self._victims, candidate.sequence)
            if victim in self._passed:
                spare = self._free - self._idle(candidate.cached) - (self._shared_write(candidate.sequence) is not None)
                num_slots = (candidate.num_held + spare) * self._pool.block_size
                num_tokens = max(0, min(num_tokens, num_slots - candidate.start))
                missing = self._blocks_missing(candidate, num_tokens)
                break
            self._preempted[victim] = None
            self._give_up(victim.block_table)
            missing = self._blocks_missing(candidate, num_tokens)
        if num_tokens:
            self._free -= missing
            self._given_up.subtract(candidate.cached)
            if (shared := self._shared_write(candidate.sequence)) is not None:
                self._give_up([shared])
        return num_tokens

    def _least_urgent_holders(self) -> Iterator[Sequence]:
        """Those that hold blocks, the least urgent first: before all others who rests, because nothing waits for it alone."""
        for rests in (True, False):
            yield from self._policy.least_urgent([item for item in self._holders if item.rests is rests], self._now)

    def _give_up(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block; one without references is free."""
        for block in blocks:
            self._given_up[block] += 1
            self._free += self._given_up[block] == self._pool.ref_count(block)

    def _idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody holds at this point of the plan."""
        return sum(self._given_up[block] == self._pool.ref_count(block) for block in blocks)

    def _shared_write(self, sequence: Sequence) -> int | None:
        """The block that the sequence writes next, if others hold it too: it needs a copy of its own."""
        block = sequence.next_write(self._pool.block_size)
        if block is None or (ref_count := self._pool.ref_count(block)) == 1:
            return None
        return block if ref_count - self._given_up[block] > 1 else None

    def _row_limit(self, candidate: _Candidate) -> int:
        """Tokens the sequence may compute before its prompt takes more rows of logits than are left."""
        sequence = candidate.sequence
        if sequence.num_prompt_logprobs_known == sequence.num_prompt_logprobs:
            return candidate.uncomputed
        return max(0, sequence.num_prompt_logprobs_known - candidate.start) + self._prompt_rows

    def _new_blocks(self, candidate: _Candidate, num_tokens: int) -> int:
        """Blocks to allocate so that the sequence can compute ``num_tokens`` tokens, a copy of a shared one among them."""
        missing = self._pool.blocks_missing(candidate.num_held, candidate.start + num_tokens)
        return missing + (num_tokens > 0 and self._shared_write(candidate.sequence) is not None)

    def _blocks_missing(self, candidate: _Candidate, num_tokens: int) -> int:
        """Free blocks that the sequence takes to compute ``num_tokens`` tokens: new ones, and cached ones that nobody holds."""
        return self._new_blocks(candidate, num_tokens) + (self._idle(candidate.cached) if num_tokens else 0)


class _Room:
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
