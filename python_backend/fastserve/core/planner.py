"""Fills one iteration: which sequences, how many tokens of each, who must give way.

The rules, in the order of the policy:

1. At most ``max_num_seqs`` sequences. The first waiting sequence that cannot be admitted closes the door behind it, so
   that a small request never overtakes a large one for ever; less urgent sequences that hold blocks go on if there is room.
2. Every sequence that only needs its next token (decode) gets it; prefill chunks share what is left of
   ``max_batched_tokens``. While the pool has room, a long prompt therefore never stalls running decodes (chunked prefill:
   Agrawal et al., 2023). Beside decodes that is a share of time, what those tokens would take without a context: a chunk is cut
   until it takes no longer with the prompt before it, but for a few tokens of the most urgent prompt (``LEAST_TOKENS``), as
   far as tokens are left for it.
3. A sequence short of blocks takes them from beams that rest (``beam_search.py``), then from the least urgent sequences that
   hold any, never from a more urgent one. The most urgent always proceeds: what could not fit alone was refused on arrival.
4. Who gives way is swapped out while a tier below the pool has room, else computed again. Where transfers run beside the
   iterations (``Swapper.proactive``), its blocks come free for a later one, and so does a sequence that is swapped in: until then
   they are promised to whom they were taken for. Otherwise this iteration waits for both.
5. No iteration moves sequences in and out: not all blocks that come free are needed by those who come in.

A waiting sequence is looked up in the prefix cache when its turn comes, never before. Blocks it can take over are not computed,
but when nobody holds them they count as taken like new ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fastserve.core.candidate import Candidate, PlannedReferences
from fastserve.core.plan import Chunk, StepPlan
from fastserve.core.policy import Policy
from fastserve.core.pool_room import Held, PoolRoom
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.core.step_limits import PrefillBudget, StepLimits
from fastserve.core.swap_choice import Movable, Room, choose_swaps, next_schedule_times
from fastserve.core.swapper import Swapper, first_tier

_SWAPPED = SequenceStatus.SWAPPED
PROMPT_ROWS = 64
"""Rows of logits that one iteration computes for the log-probabilities of prompts: a row is as wide as the vocabulary."""


class Planner:
    """Builds one :class:`StepPlan` without changing anything; made afresh for each iteration."""

    def __init__(self, limits: StepLimits, cache: PrefixCache, swapper: Swapper, policy: Policy, held: Held, now: float) -> None:
        """``cache``: of the pool."""
        self._limits = limits
        self._cache = cache
        self._pool = cache.pool
        self._swapper = swapper
        self._policy = policy
        self._now = now
        self._free = self._pool.num_free  # and not promised
        self._leaving = swapper.num_leaving if swapper.in_flight else 0  # blocks that come free later, and are not promised
        self._room = swapper.room()
        self._tiers = any(self._room.values())  # whether anything may be swapped out
        self._prompt_rows = PROMPT_ROWS
        self._references = PlannedReferences(self._pool)
        self._preempted: dict[Sequence, None] = {}
        self._swapped_out: dict[Sequence, None] = {}
        self._swapped_in: dict[Sequence, int] = {}  # with their blocks
        self._passed: set[Sequence] = set()  # the sequences planned so far: more urgent than those to come
        self._holders, self._searches = held
        self._crowded = False  # a swapped sequence waits until those that came in lately have stayed their time
        self._victims: Iterator[Sequence] | None = None  # Rule 3: who holds blocks, the least urgent first; made when needed

    def plan(self) -> StepPlan:
        selected = self._select()
        decodes = sum(1 for candidate in selected if candidate.is_decode)
        prefills = PrefillBudget(self._limits, decodes, self._pool.block_size)
        chunks: list[Chunk] = []
        places = self._limits.max_num_seqs
        for candidate in selected:
            sequence = candidate.sequence
            if len(chunks) == places or sequence in self._preempted or sequence in self._swapped_out:
                break  # everything less urgent has given way too
            self._passed.add(sequence)
            if sequence.status is _SWAPPED and not self._bring_in(candidate):
                continue
            wanted = 1 if candidate.is_decode else prefills.longest(candidate)
            if sequence.num_prompt_logprobs and not candidate.is_decode:
                wanted = min(wanted, self._row_limit(candidate))
            num_tokens = self._take_blocks(candidate, wanted) if candidate.new_blocks or candidate.cached else wanted
            if num_tokens > 0:
                reaches_end = num_tokens == candidate.uncomputed
                chunks.append(chunk := Chunk(sequence, num_tokens, reaches_end, candidate.start, candidate.cached))
                if sequence.num_prompt_logprobs:
                    self._prompt_rows -= len(chunk.prompt_rows)
            if num_tokens < wanted and not (self._swapped_out or self._swapped_in or self._swapper.in_flight):
                break  # only more urgent sequences hold blocks now
            if not candidate.is_decode:
                prefills.spend(candidate, num_tokens)
        self._look_ahead({chunk.sequence for chunk in chunks})
        return StepPlan(tuple(chunks), tuple(self._preempted), tuple(self._swapped_out), tuple(self._swapped_in), self._now)

    def _select(self) -> list[Candidate]:
        """Rule 1: the sequences that take part. A waiting one is admitted while there is room for all of its tokens, for
        what is left of the prompts admitted before it, and for one more block for each of those, lest it be preempted a
        moment later. Room is what more urgent sequences do not hold: the others would give way (rule 3)."""
        selected: list[Candidate] = []
        room = PoolRoom(self._pool, len(self._holders))
        places, most_pending = self._limits.max_num_seqs, self._limits.max_batched_tokens
        promised = pending_tokens = 0
        for sequence in self._policy.ordered(self._now):
            if places == 0:
                break
            if sequence.rests:
                continue
            candidate = self._candidate(sequence)
            swapped = sequence.status is _SWAPPED
            arriving = self._swapper.arriving(sequence) if swapped else ()
            if not (sequence.block_table or arriving) and selected:
                fits = room.fits(candidate.new_blocks + promised + len(selected), candidate)
                if not fits or pending_tokens >= most_pending:
                    return selected + self._other_holders(selected, places)
            promised += candidate.new_blocks
            room.add(candidate, arriving)
            pending_tokens += candidate.uncomputed
            selected.append(candidate)
            places -= not swapped  # who is may not run yet
        return selected

    def _candidate(self, sequence: Sequence) -> Candidate:
        start, num_tokens = sequence.num_computed, sequence.num_tokens
        num_blocks = self._pool.blocks_for(num_tokens)
        if sequence.block_table:
            uncomputed, num_held = num_tokens - start, len(sequence.block_table)
            new_blocks = max(0, num_blocks - num_held) + (self._references.shared_write(sequence) is not None)
            return Candidate(sequence, start, uncomputed, num_held, new_blocks, uncomputed == 1)
        if sequence.status is _SWAPPED:
            num_held = len(self._swapper.arriving(sequence))
            return Candidate(sequence, start, num_tokens - start, num_held, max(0, num_blocks - num_held), is_decode=False)
        cached, start = self._cache.match(sequence)
        uncomputed, num_held = num_tokens - start, len(cached)
        idle = tuple(self._pool.idle(cached)) if cached and self._pool.num_cached else ()
        return Candidate(sequence, start, uncomputed, num_held, num_blocks - num_held, uncomputed == 1, cached, idle)

    def _other_holders(self, selected: list[Candidate], count: int) -> list[Candidate]:
        """The ``count`` most urgent holders of blocks that are not selected, the most urgent first."""
        chosen = {candidate.sequence for candidate in selected}
        urgent_first = self._policy.among(self._holders, self._now)
        others = (sequence for sequence in urgent_first if sequence not in chosen and not sequence.rests)
        return [self._candidate(sequence) for sequence in itertools.islice(others, count)]

    def _bring_in(self, candidate: Candidate) -> bool:
        """Let a swapped sequence into the pool, by making others give way if need be. Whether it can run in this iteration."""
        sequence = candidate.sequence
        if sequence not in self._swapper.stored:
            return False  # on its way
        needed = self._pool.blocks_for(sequence.num_computed + 1)
        while needed > self._free + self._leaving and not self._crowded and self._make_way(for_swapped=True):
            pass
        if self._crowded or needed > self._free + self._leaving:
            self._crowded = True
            return False
        if needed > self._free or self._swapped_out or self._preempted:
            self._promise(needed)
            return False
        self._swapped_in[sequence] = candidate.num_held = len(self._swapper.stored[sequence].slots)
        self._free -= candidate.num_held
        return not self._swapper.proactive

    def _take_blocks(self, candidate: Candidate, num_tokens: int) -> int:
        """Room for the chunk, by making less urgent sequences give way if need be; how many of its tokens get room."""
        references = self._references
        new_blocks = self._pool.blocks_missing(candidate.num_held, candidate.start + num_tokens)
        # Who gives way may leave shared blocks to their last holder, and cached ones to nobody.
        while (missing := new_blocks + self._further_blocks(candidate, num_tokens)) > self._free + self._leaving:
            if not self._make_way():
                break
        if missing > self._free:
            spare = self._free - references.num_idle(candidate) - (references.shared_write(candidate.sequence) is not None)
            num_slots = (candidate.num_held + spare) * self._pool.block_size
            num_tokens = max(0, min(num_tokens, num_slots - candidate.start))
        self._promise(missing)
        if num_tokens and candidate.cached:
            references.take_over(candidate)
        elif num_tokens and (shared := references.shared_write(candidate.sequence)) is not None:
            self._free += references.drop([shared])
        return num_tokens

    def _least_urgent_holders(self) -> Iterator[Sequence]:
        """Those that hold blocks, the least urgent first: before all others who rests, because nothing waits for it alone."""
        resting = {beam for search in self._searches for beam in search.beams if beam.rests and beam.block_table}
        if resting:
            yield from self._policy.among(resting, self._now, reverse=True)
        for sequence in self._policy.among(self._holders, self._now, reverse=True):
            if sequence not in resting:
                yield sequence

    def _promise(self, num_blocks: int) -> None:
        """Nobody less urgent gets these: those that are free, and those that come free."""
        if num_blocks <= self._free:
            self._free -= num_blocks
            return
        self._leaving = max(0, self._leaving - (num_blocks - self._free))
        self._free = 0

    def _make_way(self, *, for_swapped: bool = False) -> bool:
        """The least urgent sequence gives up its blocks. False when none may: all that hold blocks are more urgent, or others
        come in during this iteration, or (``for_swapped``) it has just come in itself."""
        if self._swapped_in:
            return False
        if self._victims is None:
            self._victims = self._least_urgent_holders()
        victim = next(self._victims, None)
        if victim is None or victim in self._passed:
            return False
        if for_swapped and self._swapper.stays(victim):
            self._victims = itertools.chain([victim], self._victims)
            return False
        swapped = self._tiers and self._swap_out(victim)
        if swapped and self._swapper.proactive:
            self._leaving += sum(not self._references.is_shared(block) for block in victim.block_table)
        else:
            self._free += self._references.drop(victim.block_table)
        if not swapped:
            self._preempted[victim] = None
        return True

    def _swap_out(self, sequence: Sequence) -> bool:
        """Whether a tier has room for it. Beams take over each other's blocks: those that give way are computed again."""
        if sequence.search is not None:
            return False
        num_blocks = self._pool.blocks_for(sequence.num_computed)
        tier = first_tier(self._room, num_blocks)
        if tier is None:
            return False
        self._room[tier] -= num_blocks
        self._swapped_out[sequence] = None
        return True

    def _look_ahead(self, running: set[Sequence]) -> None:
        """Transfers that nobody waits for, while the way to the tiers is idle."""
        swapper = self._swapper
        begun = self._swapped_out or self._swapped_in or self._preempted
        if not swapper.proactive or swapper.in_flight or begun or self._crowded:
            return
        room = Room(self._free, self._leaving, swapper.pace.reserve(len(running)))
        if not swapper.stored and (room.free >= room.reserve or not self._tiers):
            return
        resident = [each for each in self._holders if not (each in running or each.search or swapper.stays(each))]
        sizes = {sequence: len(sequence.block_table) for sequence in resident}
        sizes |= {sequence: len(stored.slots) for sequence, stored in swapper.stored.items()}
        times = next_schedule_times(self._policy, sizes, self._limits.max_num_seqs, swapper.pace.step_s, self._now)
        out, into = choose_swaps(
            [Movable(sequence, sizes[sequence], times[sequence]) for sequence in resident],
            [Movable(sequence, sizes[sequence], times[sequence]) for sequence in swapper.stored],
            room,
            swapper.pace,
        )
        self._swapped_in = {sequence: sizes[sequence] for sequence in into}
        for sequence in out:
            self._swap_out(sequence)

    def _row_limit(self, candidate: Candidate) -> int:
        """Tokens the sequence may compute before its prompt takes more rows of logits than are left."""
        sequence = candidate.sequence
        if sequence.num_prompt_logprobs_known == sequence.num_prompt_logprobs:
            return candidate.uncomputed
        return max(0, sequence.num_prompt_logprobs_known - candidate.start) + self._prompt_rows

    def _further_blocks(self, candidate: Candidate, num_tokens: int) -> int:
        """Free blocks that the sequence takes, beside those for more tokens than it has room for: cached ones that nobody holds,
        or a copy of a shared one."""
        if not num_tokens:
            return 0
        if candidate.cached:  # what follows them is written to new ones
            return self._references.num_idle(candidate)
        return self._references.shared_write(candidate.sequence) is not None
