"""The transaction around one run: blocks are held while it runs and returned unless its result is committed.

::

    plan ──► enter: preempt, take over, allocate ──► run ──► commit: tokens appended, blocks kept, full ones findable
                                                      └─ failed ─► exit: new blocks returned, sequences as they were

Preemptions are not undone by a failure: a preempted sequence is whole (its tokens are all there) and merely waits. A block can be
found by others (``prefix_cache.py``) only after the run that filled it was committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, NamedTuple

from fastserve.core.beam_search import BeamCandidates
from fastserve.core.events import Event, Failed, PromptLogprobs, Timeline, TokenEvent
from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.plan import Chunk, SampledToken, StepPlan
from fastserve.core.request import FinishReason
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.errors import FastServeError, InvalidRequest

if TYPE_CHECKING:
    from fastserve.core.scheduler import Scheduler


class Reservation:
    """Blocks for every chunk of a plan. Use as a context manager; :meth:`commit` at most once."""

    def __init__(self, scheduler: Scheduler, plan: StepPlan) -> None:
        self.plan = plan
        self._scheduler = scheduler
        self._taken: list[_Before] = []
        self._committed = False
        self.copies: list[tuple[int, int]] = []
        """Blocks whose bytes have to be copied before the run, from and to: a shared block is never written (copy-on-write)."""
        self.drawing: list[tuple[Sequence, ...]] = []
        """For each sampling chunk, in plan order, the sequences that draw a token from its logits: its own, and the answers that
        begin with it."""
        self.drawing_sequences: list[Sequence] = []
        """Those of :attr:`drawing`, one after the other."""

    def __enter__(self) -> Reservation:
        for sequence in self.plan.preempted:
            self._scheduler.preempt(sequence)
        try:
            self._take_over_cached()
            self._allocate()
        except BaseException:
            self._roll_back()
            raise
        return self

    def _take_over_cached(self) -> None:
        """All of the plan's, before anything is allocated: that may evict what nobody holds."""
        for chunk in self.plan.chunks:
            if chunk.cached_blocks:
                sequence = chunk.sequence
                self._scheduler.pool.share(chunk.cached_blocks)
                self._taken.append(_Before(sequence, 0, sequence.num_computed, sequence.status, None))
                sequence.block_table.extend(chunk.cached_blocks)
                sequence.num_computed = chunk.start

    def _allocate(self) -> None:
        pool = self._scheduler.pool
        for chunk in self.plan.chunks:
            sequence, table = chunk.sequence, chunk.sequence.block_table
            # What follows cached blocks goes to new ones; a last token that they hold already is not written.
            written = None if chunk.cached_blocks else sequence.next_write(pool.block_size)
            shared = written if written is not None and pool.ref_count(written) > 1 else None
            missing = pool.blocks_missing(len(table), chunk.start + chunk.num_tokens)
            fresh = pool.allocate(missing + (shared is not None))
            self._taken.append(_Before(sequence, len(table), sequence.num_computed, sequence.status, shared))
            if shared is not None:
                table[table.index(shared)] = own = fresh.pop()
                pool.release([shared])
                self.copies.append((shared, own))
            table.extend(fresh)
            sequence.status = SequenceStatus.RUNNING
            self._scheduler.holders[sequence] = None
            if sequence.started is None:
                sequence.started = self.plan.now
            if chunk.samples:
                self.drawing.append(drawing := (sequence, *sequence.others_to_begin()))
                self.drawing_sequences += drawing

    def commit(
        self,
        tokens: Items[SampledToken | BeamCandidates | FastServeError],
        prompt_logprobs: Mapping[Sequence, Items[PositionLogprobs]] = MappingProxyType({}),
        *,
        started: float,
        ended: float,
    ) -> list[Event]:
        """Make the run's result part of the sequences. ``tokens``: one for each sequence of ``drawing``, in order; an
        error in a token's place ends that request alone. ``prompt_logprobs``: of the chunks' ``prompt_rows``, where there are
        any. ``started``, ``ended``: of the run, seconds on the engine's clock.

        Finished sequences leave the scheduler and free their blocks.
        """
        self._committed = True
        for chunk in self.plan.chunks:
            self._count_computed(chunk)
        events: list[Event] = []
        for sequence, positions in prompt_logprobs.items():
            sequence.num_prompt_logprobs_known += len(positions)
            events.append(PromptLogprobs(sequence.request.request_id, tuple(positions)))
        pairs = list(zip(self.drawing_sequences, tokens, strict=True))
        reasons = [self._append(sequence, token) for sequence, token in pairs]
        if len(pairs) > len(self.drawing):
            for first, *others in self.drawing:
                for sequence in others:
                    self._scheduler.begin_answer(sequence, first, self.plan.now)
        self._move_beams()
        charge = self._scheduler.policy.charge
        for chunk in self.plan.chunks:
            charge(chunk.sequence, chunk.num_tokens, started, ended)
        self._scheduler.swapper.pace.stepped(ended - started)
        for (sequence, token), reason in zip(pairs, reasons, strict=True):
            events += self._tell(sequence, token, reason)
        return events

    def _count_computed(self, chunk: Chunk) -> None:
        sequence, cache = chunk.sequence, self._scheduler.prefix_cache
        begins = chunk.start == 0 or bool(chunk.cached_blocks)
        if begins and sequence.num_preemptions == 0:
            sequence.num_prompt_cached = chunk.start
            cache.count(sequence)
        sequence.num_computed += chunk.num_tokens
        sequence.num_cached = 0
        cache.register(sequence, chunk.start)

    def _move_beams(self) -> None:
        """Let the searches go on all of whose beams have their candidates now."""
        searches = [sequence.search for sequence in self.drawing_sequences if sequence.search is not None]
        for search in dict.fromkeys(searches):
            if search.is_complete and (continuations := search.advance()):
                search.move(continuations, self._scheduler, self.plan.now)

    def _append(self, sequence: Sequence, token: SampledToken | BeamCandidates | FastServeError) -> FinishReason | None:
        """Why the sequence ends with this token, if it does."""
        if isinstance(token, SampledToken):
            return sequence.append(token.token_id, self._scheduler.max_model_len)
        if isinstance(token, BeamCandidates):
            sequence.candidates = token
        return None

    def _tell(
        self, sequence: Sequence, token: SampledToken | BeamCandidates | FastServeError, reason: FinishReason | None
    ) -> list[Event]:
        request_id = sequence.request.request_id
        if sequence.status is SequenceStatus.FINISHED:  # with another answer of its request, which failed
            return []
        if isinstance(token, FastServeError):
            self._scheduler.abort(request_id, completed=False)
            return [Failed(request_id, token)]
        if isinstance(token, BeamCandidates):
            return self._tell_search(sequence) if sequence.search is not None and sequence.search.is_over else []
        if reason is not None:
            self._scheduler.finish(sequence, completed=True)
        num_open = self._scheduler.num_open(request_id) - (reason is None)
        return [_token_event(sequence, token, reason, num_open)]

    def _tell_search(self, beam: Sequence) -> list[Event]:
        """Everything of a search that is over; its beams end."""
        request, search = beam.request, beam.search
        self._scheduler.abort(request.request_id)
        if search is None or len(search.answers) < request.params.n:
            found = 0 if search is None else len(search.answers)
            return [
                Failed(request.request_id, InvalidRequest("n", request.params.n, f"at most {found}: there are no more answers"))
            ]
        return search.events(_timeline(beam))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._committed:
            self._roll_back()

    def _roll_back(self) -> None:
        pool = self._scheduler.pool
        for before in reversed(self._taken):
            table = before.sequence.block_table
            before.sequence.num_computed = before.num_computed
            pool.release(reversed(table[before.num_blocks :]))
            del table[before.num_blocks :]
            before.sequence.status = before.status
            if before.copied is not None:
                _, own = self.copies.pop()
                pool.share([before.copied])
                table[table.index(own)] = before.copied
                pool.release([own])
            if not table:
                self._scheduler.holders.pop(before.sequence, None)


class _Before(NamedTuple):
    """A sequence as it was. ``copied``: the block it shared with others and has a copy of now."""

    sequence: Sequence
    num_blocks: int
    num_computed: int
    status: SequenceStatus
    copied: int | None


def _timeline(sequence: Sequence) -> Timeline | None:
    if not sequence.request.return_timing or sequence.started is None:
        return None
    return Timeline(sequence.started, sequence.num_preemptions, sequence.num_prompt_cached)


def _token_event(sequence: Sequence, token: SampledToken, reason: FinishReason | None, num_open: int) -> TokenEvent:
    """``sequence``: which the token is the newest of. ``num_open``: other answers that go on."""
    request = sequence.request
    return TokenEvent(
        request.request_id,
        token.token_id,
        token.logprob,
        reason,
        logprobs=token.logprobs,
        timeline=_timeline(sequence),
        index=sequence.index,
        num_open=num_open,
    )
