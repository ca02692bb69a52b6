"""Beam search over the answers to one request (Graves, "Sequence Transduction with Recurrent Neural Networks", 2012; length
penalty: Wu et al., "Google's Neural Machine Translation System", 2016). What is kept, what has ended and when it is over is
decided as transformers' ``generate`` does, so that the answers are the same.

::

    beams    a b c d ──step──► candidates of each ──► the best continuations: a+x a+y c+z d+x   e ends: an answer
                                                      tables:                 a   a   c   d     (shared, never copied here)

A beam is a sequence like any other: the policy orders it, the planner may serve or preempt it alone. Once its next token's
candidates are known it *rests* until those of every beam are; then all move on at once. So beams need not share an iteration,
and nothing can deadlock that could not without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from fastserve.core.events import Event, Timeline, TokenEvent
from fastserve.core.request import FinishReason, SamplingParams
from fastserve.core.sequence import Sequence, SequenceStatus

if TYPE_CHECKING:
    from fastserve.core.scheduler import Scheduler


@dataclasses.dataclass(frozen=True, slots=True)
class BeamCandidates:
    """Tokens that a beam may go on with and their log-probabilities: the ``num_beams`` likeliest, and as many of those that end
    nothing. No token twice."""

    tokens: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Continuation:
    """A beam's next token. ``parent``: index of the beam it goes on from. ``total``: log-probability of all its tokens."""

    parent: int
    token_id: int
    logprob: float
    total: float


@dataclasses.dataclass(frozen=True, slots=True)
class BeamAnswer:
    """A beam that ended. ``score``: its log-probability over its length to the power of the length penalty."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float


class BeamSearch:
    """One request's search. ``answers``: those that ended, the best first, at most ``num_beams``."""

    def __init__(self, params: SamplingParams, first: Sequence, longest: int) -> None:
        """``first``: the sequence that computes the prompt. ``longest``: tokens that an answer may have."""
        self.beams = [first]
        self.answers: list[BeamAnswer] = []
        self.is_over = False
        self._params = params
        self._longest = longest
        self._totals = [0.0]
        self._logprobs: list[tuple[float, ...]] = [()]

    @property
    def is_complete(self) -> bool:
        """Whether every beam's candidates are known."""
        return all(beam.rests for beam in self.beams)

    def advance(self) -> list[Continuation]:
        """Consume the candidates: the best continuations of all beams, at most ``num_beams``; none when the search is over."""
        length = len(self.beams[0].output_token_ids) + 1
        merged = [
            Continuation(parent, token_id, logprob, self._totals[parent] + logprob)
            for parent, beam in enumerate(self.beams)
            if beam.candidates is not None
            for token_id, logprob in beam.candidates.tokens
        ]
        merged.sort(key=lambda item: (-item.total, item.parent, item.token_id))
        stop, count = self._params.stop_token_ids, self._params.num_beams
        going = [item for item in merged if item.token_id not in stop and length < self._longest][:count]
        for item in merged[:count]:  # an ending beyond these is too unlikely to count
            if item.token_id in stop or length == self._longest:
                self._end(item, length)
        self.answers.sort(key=lambda answer: -answer.score)
        del self.answers[count:]
        self.is_over = not going or not self._may_improve(going[0], length)
        return [] if self.is_over else going

    def events(self, timeline: Timeline | None) -> list[Event]:
        """All tokens of the best ``n`` answers, one answer after the other."""
        params, found = self._params, self.answers[: self._params.n]
        events: list[Event] = []
        for index, answer in enumerate(found):
            reason = FinishReason.STOP if answer.token_ids[-1] in params.stop_token_ids else FinishReason.LENGTH
            for left, token_id, logprob in zip(
                range(len(answer.token_ids) - 1, -1, -1), answer.token_ids, answer.logprobs, strict=True
            ):
                events.append(
                    TokenEvent(
                        self.beams[0].request.request_id,
                        token_id,
                        logprob if params.return_logprobs else None,
                        None if left else reason,
                        timeline=timeline,
                        index=index,
                        num_open=len(found) - 1 - index,
                    )
                )
        return events

    def _end(self, item: Continuation, length: int) -> None:
        token_ids = (*self.beams[item.parent].output_token_ids, item.token_id)
        logprobs = (*self._logprobs[item.parent], item.logprob)
        self.answers.append(BeamAnswer(token_ids, logprobs, item.total / length**self._params.length_penalty))

    def _may_improve(self, best: Continuation, length: int) -> bool:
        """Whether a longer answer could still be among the best: transformers' heuristics by ``early_stopping``."""
        params = self._params
        if len(self.answers) < params.num_beams:
            return True
        if params.early_stopping is True:
            return False
        hopeful = params.early_stopping == "never" and params.length_penalty > 0.0
        possible = best.total / (self._longest if hopeful else length) ** params.length_penalty
        return bool(possible > self.answers[-1].score)

    def move(self, continuations: Items[Continuation], scheduler: Scheduler, now: float) -> None:
        """Make the continuations the beams. Tables are shared with the parents', then the old ones released; a beam beyond the
        continuations rests without blocks."""
        first = self.beams[0]
        while len(self.beams) < self._params.num_beams:
            beam = Sequence(first.request, len(self.beams))
            beam.search, beam.candidates = self, BeamCandidates(())
            scheduler.begin_answer(beam, first, now)
            self.beams.append(beam)
        parents = [_Held.of(beam) for beam in self.beams]
        for item in continuations:
            scheduler.pool.share(parents[item.parent].block_table)
        for beam in self.beams:
            scheduler.release_blocks(beam)
            beam.num_computed = beam.num_cached = 0
            beam.status, beam.candidates = SequenceStatus.WAITING, BeamCandidates(())
        for beam, item in zip(self.beams, continuations, strict=False):
            parents[item.parent].give(beam, scheduler)
            beam.output_token_ids.append(item.token_id)
            beam.candidates = None
            if not beam.block_table:
                beam.num_cached = scheduler.prefix_cache.match(beam).num_tokens
        self._logprobs = [(*self._logprobs[item.parent], item.logprob) for item in continuations]
        self._totals = [item.total for item in continuations]


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """What a beam hands on to those that continue it."""

    output_token_ids: list[int]
    block_table: list[int]
    block_digests: list[bytes]
    num_computed: int
    started: float | None

    @classmethod
    def of(cls, beam: Sequence) -> _Held:
        table, digests = list(beam.block_table), list(beam.block_digests)
        return cls(list(beam.output_token_ids), table, digests, beam.num_computed, beam.started)

    def give(self, beam: Sequence, scheduler: Scheduler) -> None:
        """``beam``: without blocks; those of the table have been shared with it."""
        beam.output_token_ids[:] = self.output_token_ids
        beam.block_digests[:] = self.block_digests
        beam.block_table.extend(self.block_table)
        beam.started = self.started
        if self.block_table:
            beam.num_computed, beam.status = self.num_computed, SequenceStatus.RUNNING
            scheduler.holders[beam] = None


def blocks_together(prompt: int, longest: int, num_beams: int, block_size: int) -> int:
    """KV blocks that the beams of a request may need at once, when they share the prompt's full blocks only. ``prompt``,
    ``longest``: tokens computed at first and in the end."""
    shared = prompt // block_size if num_beams > 1 else 0
    return shared + num_beams * (-(-longest // block_size) - shared)
