"""The transaction around one run: blocks are held while it runs and returned unless its result is committed.

::

    plan ──► enter: preempt, allocate ──► run ──► commit: tokens appended, blocks kept
                                           └─ failed ─► exit: new blocks returned, sequences as they were

Preemptions are not undone by a failure: a preempted sequence is whole (its tokens are all there) and merely waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from fastserve.core.events import Event, Failed, Timeline, TokenEvent
from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.plan import SampledToken, StepPlan
from fastserve.core.request import FinishReason
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.errors import FastServeError

if TYPE_CHECKING:
    from fastserve.core.scheduler import Scheduler


class Reservation:
    """Blocks for every chunk of a plan. Use as a context manager; :meth:`commit` at most once."""

    def __init__(self, scheduler: Scheduler, plan: StepPlan) -> None:
        self.plan = plan
        self._scheduler = scheduler
        self._taken: list[tuple[Sequence, int, SequenceStatus]] = []  # sequence, blocks before, status before
        self._committed = False

    def __enter__(self) -> Reservation:
        for sequence in self.plan.preempted:
            self._scheduler.preempt(sequence)
        try:
            self._allocate()
        except BaseException:
            self._roll_back()
            raise
        return self

    def _allocate(self) -> None:
        pool = self._scheduler.pool
        for chunk in self.plan.chunks:
            sequence = chunk.sequence
            held = len(sequence.block_table)
            missing = pool.blocks_missing(held, sequence.num_computed + chunk.num_tokens)
            self._taken.append((sequence, held, sequence.status))
            sequence.block_table.extend(pool.allocate(missing))
            sequence.status = SequenceStatus.RUNNING
            if sequence.started is None:
                sequence.started = self.plan.now

    def commit(
        self,
        tokens: Items[SampledToken | FastServeError],
        prompt_logprobs: Mapping[Sequence, Items[PositionLogprobs]] = MappingProxyType({}),
    ) -> list[Event]:
        """Make the run's result part of the sequences. ``tokens``: one for each sampling chunk, in plan order; an error
        in a token's place ends that request alone. ``prompt_logprobs``: of the chunks' ``prompt_rows``, where there are any.

        Finished sequences leave the scheduler and free their blocks.
        """
        self._committed = True
        for chunk in self.plan.chunks:
            chunk.sequence.num_computed += chunk.num_tokens
        for sequence, positions in prompt_logprobs.items():
            sequence.prompt_logprobs.extend(positions)
        events: list[Event] = []
        for sequence, token in zip(self.plan.sampling, tokens, strict=True):
            request_id = sequence.request.request_id
            if isinstance(token, FastServeError):
                self._scheduler.finish(sequence)
                events.append(Failed(request_id, token))
                continue
            reason = sequence.append(token.token_id, self._scheduler.max_model_len)
            events.append(_token_event(sequence, token, reason))
            if reason is not None:
                self._scheduler.finish(sequence)
        return events

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._committed:
            self._roll_back()

    def _roll_back(self) -> None:
        for sequence, held, status in reversed(self._taken):
            self._scheduler.pool.release(reversed(sequence.block_table[held:]))
            del sequence.block_table[held:]
            sequence.status = status


def _token_event(sequence: Sequence, token: SampledToken, reason: FinishReason | None) -> TokenEvent:
    """``sequence``: which the token is the newest of."""
    request = sequence.request
    wanted = request.params.prompt_logprobs is not None and len(sequence.output_token_ids) == 1
    prompt = tuple(sequence.prompt_logprobs) if wanted else None
    timeline = None
    if request.return_timing and sequence.started is not None:
        timeline = Timeline(sequence.started, sequence.num_preemptions)
    return TokenEvent(request.request_id, token.token_id, token.logprob, reason, token.logprobs, prompt, timeline)
