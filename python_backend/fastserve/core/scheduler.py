"""Owns every unfinished sequence: admits, plans, reserves, commits. Lives on the engine thread; holds no clock."""

from __future__ import annotations

from collections.abc import Sequence as Items

from fastserve.core.admission import Deadlines, check_queue
from fastserve.core.block_pool import BlockPool
from fastserve.core.plan import StepPlan
from fastserve.core.planner import Planner, StepLimits
from fastserve.core.policy import Policy
from fastserve.core.request import Request
from fastserve.core.reservation import Reservation
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.errors import InvalidRequest, RequestTooLong


class Scheduler:
    """Decides which tokens are computed in which iteration and who holds which blocks."""

    def __init__(self, limits: StepLimits, pool: BlockPool, policy: Policy, *, max_model_len: int, max_queue_size: int) -> None:
        """``max_model_len``: longest prompt + output in tokens. ``max_queue_size``: unfinished requests accepted."""
        self.pool = pool
        self.max_model_len = max_model_len
        self._limits = limits
        self._policy = policy
        self._max_queue_size = max_queue_size
        self._sequences: dict[int, Sequence] = {}
        self._deadlines = Deadlines(self._sequences)
        self.num_preemptions = 0

    def __len__(self) -> int:
        """Unfinished sequences."""
        return len(self._sequences)

    @property
    def sequences(self) -> Items[Sequence]:
        """Every unfinished sequence, in order of arrival."""
        return list(self._sequences.values())

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return sum(1 for sequence in self._sequences.values() if sequence.status is SequenceStatus.RUNNING)

    def add(self, request: Request, now: float) -> Sequence:
        """Accept a request. Raises QueueFull, or RequestTooLong when it could not finish even with the pool to itself."""
        check_queue(len(self._sequences), self._max_queue_size)
        if not request.prompt_token_ids:
            raise InvalidRequest("prompt", [], "at least one token")
        self._check_fits(request)
        sequence = Sequence(request)
        self._sequences[request.request_id] = sequence
        self._policy.add(sequence, now)
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
        # The last token is never fed back, so it needs no slot.
        longest = min(prompt + request.params.max_tokens, self.max_model_len) - 1
        needed, total = self.pool.blocks_for(longest), self.pool.num_blocks
        if needed > total:
            raise RequestTooLong(
                "prompt + max_tokens",
                f"{longest + 1} tokens ({needed} KV blocks)",
                f"what the KV pool can hold, {total * self.pool.block_size} tokens ({total} blocks); "
                "lower max_tokens or raise kv_cache_bytes",
            )

    def abort(self, request_id: int) -> Sequence | None:
        """End a sequence early and free its blocks. None when it has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.finish(sequence)
        return sequence

    def expired(self, now: float) -> list[Sequence]:
        """Ends every sequence whose deadline has passed and returns them."""
        ended = [self._sequences[request_id] for request_id in self._deadlines.pop_due(now)]
        for sequence in ended:
            self.finish(sequence)
        return ended

    def plan(self, now: float) -> StepPlan:
        """The next iteration; changes nothing."""
        return Planner(self._limits, self.pool, self._policy, now).plan()

    def reserve(self, plan: StepPlan) -> Reservation:
        """A context manager that holds the blocks of ``plan`` and gives them back unless it is committed."""
        return Reservation(self, plan)

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks away; its tokens will be computed again (recompute preemption)."""
        self._release_blocks(sequence)
        sequence.num_computed = 0
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def finish(self, sequence: Sequence) -> None:
        """Forget an ended sequence and free its blocks."""
        del self._sequences[sequence.request.request_id]
        self._policy.discard(sequence)
        self._release_blocks(sequence)
        sequence.status = SequenceStatus.FINISHED

    def _release_blocks(self, sequence: Sequence) -> None:
        self.pool.release(reversed(sequence.block_table))
        sequence.block_table.clear()
