"""Owns every unfinished sequence: admits, plans, reserves, commits. Lives on the engine thread; holds no clock."""

from __future__ import annotations

from collections.abc import Sequence as Items

from fastserve.core.admission import Deadlines, Queue, QueueLimits
from fastserve.core.beam_search import BeamSearch, blocks_together
from fastserve.core.plan import StepPlan
from fastserve.core.planner import Planner
from fastserve.core.policy import Policy, PriorityClasses
from fastserve.core.pool_room import Held
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request
from fastserve.core.reservation import Reservation
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.core.step_limits import StepLimits
from fastserve.core.swapper import Swapper, Transfer, TransferEnded
from fastserve.errors import InvalidRequest, RequestTooLong, UnsupportedFeature


class Scheduler:
    """Decides which tokens are computed in which iteration and who holds which blocks."""

    def __init__(
        self,
        limits: StepLimits,
        cache: PrefixCache,
        policy: Policy,
        *,
        max_model_len: int,
        queue: QueueLimits,
        swapper: Swapper | None = None,
    ) -> None:
        """``cache``: of the pool that holds the sequences. ``max_model_len``: longest prompt + output in tokens. ``queue``:
        unfinished requests accepted. ``swapper``: of the tiers below the pool; None: there are none."""
        self.pool = cache.pool
        self.prefix_cache = cache
        self.swapper = swapper or Swapper(cache.pool, {})
        self.max_model_len = max_model_len
        self.limits = limits
        """Of the iterations planned from now on."""
        self.policy = policy
        self._queue = Queue(queue)
        self._sequences: dict[int, list[Sequence]] = {}  # by request: its answers that have not ended
        self.searches: dict[int, BeamSearch] = {}
        """Of unfinished requests, by request."""
        self.holders: dict[Sequence, None] = {}
        """Sequences that hold blocks; kept by this class and the reservation."""
        self._deadlines = Deadlines(self._sequences)
        self.num_preemptions = 0

    def __len__(self) -> int:
        """Unfinished requests."""
        return len(self._sequences)

    @property
    def sequences(self) -> Items[Sequence]:
        """Every unfinished sequence, in order of their requests' arrival."""
        return [sequence for siblings in self._sequences.values() for sequence in siblings]

    @property
    def num_swapped(self) -> int:
        """Requests of which no sequence holds blocks and one is in a tier below the pool, or on its way."""
        running = {sequence.request.request_id for sequence in self.holders}
        swapped = {sequence.request.request_id for held in (self.swapper.stored, self.swapper.moving) for sequence in held}
        return len(swapped - running)

    def num_open(self, request_id: int) -> int:
        """Sequences of a request that have not ended."""
        return len(self._sequences.get(request_id, ()))

    def add(self, request: Request, now: float) -> Sequence:
        """Accept a request. Raises QueueFull, RequestTooLong when it could not finish even with the pool to itself, or
        UnsupportedFeature for a priority that the policy does not know."""
        self._queue.check(request.tenant)
        if not request.prompt_token_ids:
            raise InvalidRequest("prompt", [], "at least one token")
        if request.priority and not isinstance(self.policy, PriorityClasses):
            raise UnsupportedFeature("priority", f"got {request.priority}; it needs policy priority in the model's config.pbtxt")
        self._check_fits(request)
        sequence = Sequence(request)
        if request.params.num_beams > 1:
            longest = self._longest(request) + 1 - len(request.prompt_token_ids)
            sequence.search = self.searches[request.request_id] = BeamSearch(request.params, sequence, longest)
        self._sequences[request.request_id] = [sequence]
        self._queue.enter(request.tenant)
        self.prefix_cache.prepare(sequence)
        sequence.num_cached = self.prefix_cache.match(sequence).num_tokens
        self.policy.add(sequence, now)
        self.swapper.pace.arrived(len(request.prompt_token_ids))
        self._deadlines.add(request.deadline, request.request_id)
        return sequence

    def _check_fits(self, request: Request) -> None:
        prompt = len(request.prompt_token_ids)
        if prompt >= self.max_model_len:
            raise RequestTooLong(
                "prompt",
                f"{prompt} tokens",
                f"at most {self.max_model_len - 1} (the model's limit is {self.max_model_len} with output)",
            )
        longest, num_beams = self._longest(request), request.params.num_beams
        needed, total = blocks_together(prompt, longest, num_beams, self.pool.block_size), self.pool.num_blocks
        if needed > total:
            raise RequestTooLong(
                "prompt + max_tokens",
                f"{longest + 1} tokens ({needed} KV blocks" + (f" for {num_beams} beams)" if num_beams > 1 else ")"),
                f"what the KV pool can hold, {total * self.pool.block_size} tokens ({total} blocks); "
                f"lower max_tokens{' or num_beams' if num_beams > 1 else ''} or raise kv_cache_bytes",
            )

    def _longest(self, request: Request) -> int:
        """Tokens that a sequence of the request may have computed: the last one is never fed back, so it needs no slot."""
        return min(len(request.prompt_token_ids) + request.params.max_tokens, self.max_model_len) - 1

    def begin_answer(self, sequence: Sequence, first: Sequence, now: float) -> None:
        """Let an answer begin where the first one of its request is, which has just computed the prompt: with its blocks."""
        self.pool.share(first.block_table)
        sequence.block_table.extend(first.block_table)
        sequence.block_digests.extend(first.block_digests)
        sequence.num_computed, sequence.started, sequence.status = first.num_computed, first.started, first.status
        sequence.num_prompt_cached = first.num_prompt_cached
        self._sequences[first.request.request_id].append(sequence)
        self.holders[sequence] = None
        self.policy.add(sequence, now)

    def abort(self, request_id: int, index: int | None = None, *, completed: bool = True) -> bool:
        """End a request early, or only the answer ``index`` of it, and free the blocks. Whether the request ended by that. Beams
        end together.
        ``completed``: its client has read enough, as long an answer as it was going to be."""
        known = request_id in self._sequences
        for sequence in list(self._sequences.get(request_id, ())):
            if index is None or sequence.index == index or sequence.search is not None:
                self.finish(sequence, completed=completed)
        return known and request_id not in self._sequences

    def expired(self, now: float) -> list[int]:
        """Ends every request whose deadline has passed and returns their ids."""
        ended = list(self._deadlines.pop_due(now))
        for request_id in ended:
            self.abort(request_id, completed=False)
        return ended

    def plan(self, now: float) -> StepPlan:
        """The next iteration; changes nothing."""
        held = Held(self.holders, self.searches.values())
        return Planner(self.limits, self.prefix_cache, self.swapper, self.policy, held, now).plan()

    def begin_swaps(self, plan: StepPlan) -> list[Transfer]:
        """Hand over blocks and slots for the transfers of ``plan``. A failed run does not undo them: the sequences are whole."""
        transfers = [self.swapper.begin_out(sequence) for sequence in plan.swapped_out]
        for sequence in plan.swapped_out:
            del self.holders[sequence]
            sequence.num_preemptions += 1
        cached = [block for chunk in plan.chunks for block in chunk.cached_blocks]
        self.pool.share(cached)  # lest the blocks for who comes in be these
        transfers += [self.swapper.begin_in(sequence) for sequence in plan.swapped_in]
        self.pool.release(cached)
        return transfers

    def end_swap(self, ended: TransferEnded) -> None:
        """A copy is over: what it held is free or a sequence's again."""
        sequence = self.swapper.end(ended)
        if sequence is not None and sequence.block_table:
            self.holders[sequence] = None
        elif sequence is not None and sequence.status is SequenceStatus.WAITING:
            self._compute_again(sequence)

    def reserve(self, plan: StepPlan) -> Reservation:
        """A context manager that holds the blocks of ``plan`` and gives them back unless it is committed."""
        return Reservation(self, plan)

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks away; its tokens will be computed again (recompute preemption), but for what it finds of them
        in the prefix cache then."""
        self.release_blocks(sequence)
        self._compute_again(sequence)

    def _compute_again(self, sequence: Sequence) -> None:
        """It has lost its blocks, and what was in them."""
        sequence.num_computed = 0
        sequence.num_cached = self.prefix_cache.match(sequence).num_tokens
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.policy.preempted(sequence)

    def finish(self, sequence: Sequence, *, completed: bool = False) -> None:
        """Forget an ended sequence and free its blocks. ``completed``: nothing of its output is missing."""
        siblings = self._sequences[sequence.request.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request.request_id]
            self.searches.pop(sequence.request.request_id, None)
            self._queue.leave(sequence.request.tenant)
        self.policy.discard(sequence, completed=completed)
        self.release_blocks(sequence)
        self.swapper.forget(sequence)
        sequence.status = SequenceStatus.FINISHED

    def release_blocks(self, sequence: Sequence) -> None:
        """Its table is empty then; how far it has come is for the caller to say."""
        self.pool.release(reversed(sequence.block_table))
        sequence.block_table.clear()
        self.holders.pop(sequence, None)
