"""Fills one iteration: which sequences, how many tokens of each, who must give way.

The rules, in the order of the policy:

1. At most ``max_num_seqs`` sequences. The first waiting sequence that cannot be admitted closes the door behind it, so
   that a small request never overtakes a large one for ever; less urgent sequences that hold blocks go on if there is room.
2. Every sequence that only needs its next token (decode) gets it; prefill chunks share what is left of
   ``max_batched_tokens``. While the pool has room, a long prompt therefore never stalls running decodes (chunked prefill:
   Agrawal et al., 2023).
3. A sequence short of blocks takes them from the least urgent sequences that hold any, never from a more urgent one.
   The most urgent sequence always proceeds, because a request that could not fit alone was refused on arrival.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from fastserve.core.block_pool import BlockPool
from fastserve.core.plan import Chunk, StepPlan
from fastserve.core.policy import Policy
from fastserve.core.sequence import Sequence

PROMPT_ROWS = 64
"""Rows of logits that one iteration computes for the log-probabilities of prompts: a row is as wide as the vocabulary."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepLimits:
    """The budgets of one iteration."""

    max_num_seqs: int
    max_batched_tokens: int


class Planner:
    """Builds one :class:`StepPlan` without changing anything; made afresh for each iteration."""

    def __init__(self, limits: StepLimits, pool: BlockPool, policy: Policy, holders: Collection[Sequence], now: float) -> None:
        """``holders``: the sequences that hold blocks."""
        self._limits = limits
        self._pool = pool
        self._policy = policy
        self._now = now
        self._free = pool.num_free
        self._prompt_rows = PROMPT_ROWS
        self._given_up: Counter[int] = Counter()  # references to blocks that the plan drops
        self._preempted: dict[Sequence, None] = {}
        self._passed: set[Sequence] = set()  # the sequences planned so far: more urgent than those to come
        self._holders = holders
        self._victims: Iterator[Sequence] | None = None  # Rule 3: who holds blocks, the least urgent first; made when needed

    def plan(self) -> StepPlan:
        selected = self._select()
        decodes = sum(1 for sequence in selected if sequence.num_uncomputed == 1)
        prefill_budget = self._limits.max_batched_tokens - decodes
        chunks: list[Chunk] = []
        for sequence in selected:
            if sequence in self._preempted:
                break  # everything less urgent has given way too
            self._passed.add(sequence)
            uncomputed = sequence.num_uncomputed
            wanted = 1 if uncomputed == 1 else min(uncomputed, prefill_budget, self._row_limit(sequence))
            num_tokens = self._take_blocks(sequence, wanted)
            if num_tokens > 0:
                chunks.append(Chunk(sequence, num_tokens, samples=num_tokens == uncomputed))
                self._prompt_rows -= len(chunks[-1].prompt_rows)
            if num_tokens < wanted:
                break  # only more urgent sequences hold blocks now
            if uncomputed > 1:
                prefill_budget -= num_tokens
        return StepPlan(tuple(chunks), tuple(self._preempted), self._now)

    def _select(self) -> list[Sequence]:
        """Rule 1: the sequences that take part. A waiting one is admitted while there is room for all of its tokens, for
        what is left of the prompts admitted before it, and for one more block for each of those, lest it be preempted a
        moment later. Room is what more urgent sequences do not hold: the others would give way (rule 3)."""
        selected: list[Sequence] = []
        promised = held = pending_tokens = 0
        for sequence in self._policy.ordered(self._now):
            if len(selected) == self._limits.max_num_seqs:
                break
            missing = self._blocks_missing(sequence, sequence.num_uncomputed)
            if not sequence.block_table and selected:
                room = max(self._pool.num_blocks - held, self._free)
                crowded = missing + promised + len(selected) > room
                if crowded or pending_tokens >= self._limits.max_batched_tokens:
                    return selected + self._other_holders(selected)
            promised += missing
            held += len(sequence.block_table)
            pending_tokens += sequence.num_uncomputed
            selected.append(sequence)
        return selected

    def _other_holders(self, selected: list[Sequence]) -> list[Sequence]:
        """The most urgent holders of blocks that are not selected, as many as the step can take, the most urgent first."""
        chosen = set(selected)
        others = [sequence for sequence in self._holders if sequence not in chosen]
        most_urgent = list(self._policy.least_urgent(others, self._now))[::-1]
        return most_urgent[: self._limits.max_num_seqs - len(selected)]

    def _take_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Room for the chunk, by preempting less urgent sequences if need be; how many of its tokens get room."""
        while self._blocks_missing(sequence, num_tokens) > self._free:
            if self._victims is None:
                self._victims = self._policy.least_urgent(self._holders, self._now)
            victim = next(self._victims, sequence)
            if victim in self._passed:
                num_blocks = len(sequence.block_table) + self._free - (self._shared_write(sequence) is not None)
                num_tokens = max(0, min(num_tokens, num_blocks * self._pool.block_size - sequence.num_computed))
                break
            self._preempted[victim] = None
            self._give_up(victim.block_table)
        self._free -= self._blocks_missing(sequence, num_tokens)
        if num_tokens and (shared := self._shared_write(sequence)) is not None:
            self._give_up([shared])
        return num_tokens

    def _give_up(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block; one without references is free."""
        for block in blocks:
            self._given_up[block] += 1
            self._free += self._given_up[block] == self._pool.ref_count(block)

    def _shared_write(self, sequence: Sequence) -> int | None:
        """The block that the sequence writes next, if others hold it too: it needs a copy of its own."""
        block = sequence.next_write(self._pool.block_size)
        return block if block is not None and self._pool.ref_count(block) - self._given_up[block] > 1 else None

    def _row_limit(self, sequence: Sequence) -> int:
        """Tokens the sequence may compute before its prompt takes more rows of logits than are left."""
        if sequence.num_prompt_logprobs_known == sequence.num_prompt_logprobs:
            return sequence.num_uncomputed
        return max(0, sequence.num_prompt_logprobs_known - sequence.num_computed) + self._prompt_rows

    def _blocks_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks the sequence lacks to hold ``num_tokens`` more tokens than are computed."""
        missing = self._pool.blocks_missing(len(sequence.block_table), sequence.num_computed + num_tokens)
        return missing + (num_tokens > 0 and self._shared_write(sequence) is not None)
