"""One iteration of the model over many requests: plan, reserve, pack, run, sample, commit.

The engine is single-threaded and owns the scheduler, the KV cache, the session and the sampler. It knows nothing of
threads, text or Triton.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fastserve.core.beam_search import BeamCandidates
from fastserve.core.cost_model import CostModel
from fastserve.core.events import Aborted, Event, Failed, TokenEvent
from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.plan import Chunk, SampledToken, StepPlan
from fastserve.core.request import Request
from fastserve.core.reservation import Reservation
from fastserve.core.scheduler import Scheduler
from fastserve.core.sequence import Sequence as CoreSequence
from fastserve.core.swapper import Tier
from fastserve.core.transfers import Copier, NoCopier, Transfers
from fastserve.engine.cost_file import CostFile
from fastserve.engine.failures import as_step_failure, deadline_passed
from fastserve.engine.stats import EngineStats
from fastserve.engine.step_times import StepTimes
from fastserve.errors import FastServeError, StepFailed
from fastserve.worker.batch import ForwardBatch, Packer, SequenceInput
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.logprobs import Logits, prompt_logprobs
from fastserve.worker.sampler import Sampler

StepResult = tuple[list[SampledToken | BeamCandidates | FastServeError], dict[CoreSequence, list[PositionLogprobs]]]
"""A token or an error for each sequence that draws one, and what became known of prompts."""


class Runner(Protocol):
    """What the engine needs of a model runner."""

    def run(self, batch: ForwardBatch, kv_cache: KVCache) -> Logits:
        """Logits [num_rows, vocab_size]; raises StepFailed."""


class Engine:
    """Turns submitted requests into events, one iteration at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        kv_cache: KVCache,
        *,
        clock: Callable[[], float],
        cost_model: CostModel,
        position_offset: int = 0,
        copier: Copier | None = None,
    ) -> None:
        """``clock``: seconds, monotonic. ``cost_model``: learns what steps take. ``position_offset``: see ``ModelManifest``.
        ``copier``: moves the bytes that the scheduler's swapper moves the ids of."""
        self.scheduler = scheduler
        self.cost_model = cost_model
        self.cost_file: CostFile | None = None
        """Where what was learned is kept for the next engine like this one."""
        self.before_wait: Callable[[], None] = lambda: None
        """Called by :meth:`step` when everything is ready for the model to run, and before it waits for copies."""
        self._runner = runner
        self.kv_cache = kv_cache
        self._clock = clock
        self._packer = Packer(scheduler.pool.block_size, position_offset)
        self._sampler = Sampler()
        self._transfers = Transfers(scheduler, copier or NoCopier(), lambda: self.before_wait())  # noqa: PLW0108  (set later)
        self._served: tuple[CoreSequence, ...] = ()  # in the latest iteration
        self.reset_counters()

    def reset_counters(self) -> None:
        """Start counting again, with an empty prefix cache: what was run so far was not for a client."""
        self.scheduler.prefix_cache.reset()
        self._prompt_tokens = self._generation_tokens = self._computed_tokens = self._steps = 0
        self._step_seconds = 0.0
        self.times = StepTimes(self._clock)

    @property
    def has_work(self) -> bool:
        return len(self.scheduler) > 0 or self._transfers.in_flight

    def submit(self, request: Request) -> list[Event]:
        """Accept a request, or say at once why not."""
        try:
            self.scheduler.add(request, self._clock())
        except FastServeError as error:
            return [Failed(request.request_id, error)]
        return []

    def abort(self, request_id: int, index: int | None = None) -> list[Event]:
        """Withdraw a request, or only the answer ``index`` of it; nothing happens when it has ended already."""
        return [Aborted(request_id)] if self.scheduler.abort(request_id, index) else []

    def fail_all(self, error: FastServeError) -> list[Event]:
        """End every unfinished request with ``error``."""
        return self._fail(self.scheduler.sequences, error)

    def step(self) -> list[Event]:
        """One iteration. A fault of a request or of the model becomes Failed events; what is raised is a bug."""
        now = self._clock()
        self.times.begin(now)
        events: list[Event] = [deadline_passed(request_id) for request_id in self.scheduler.expired(now)]
        if events or not len(self.scheduler):
            self._transfers.collect(wait=not events)  # those of requests that have ended
            return events  # handed over now, so that a bug in what follows cannot swallow an ending
        self._transfers.collect()
        plan = self.scheduler.plan(now)
        self.times.end("plan")
        if not self._transfers.begin(plan):
            self._step_seconds += self._clock() - now
            return events
        try:
            events = self._execute_with_retry(plan)
        except StepFailed as error:
            events = self._fail([chunk.sequence for chunk in plan.chunks], error)
        self._step_seconds += self._clock() - now
        return events

    def _execute_with_retry(self, plan: StepPlan) -> list[Event]:
        try:
            return self._execute(plan)
        except StepFailed as error:
            if not error.retryable:
                raise
        return self._execute(dataclasses.replace(plan, preempted=()))  # the preemptions stand

    def _execute(self, plan: StepPlan) -> list[Event]:
        started = self._clock()
        with self.scheduler.reserve(plan) as reservation:
            self.times.end("reserve")
            tokens, prompt_logprobs = self._compute(reservation)
            first = [sequence for sequence, *_ in reservation.drawing if not sequence.output_token_ids]
            ended = self._clock()
            events = reservation.commit(tokens, prompt_logprobs, started=started, ended=ended)
        self._learn(plan, self._clock() - started)
        self._served = tuple(chunk.sequence for chunk in plan.chunks)
        self._steps += 1
        self._computed_tokens += plan.num_tokens
        self._prompt_tokens += sum(len(sequence.request.prompt_token_ids) for sequence in first)
        self._generation_tokens += sum(isinstance(event, TokenEvent) for event in events)
        self.times.end("commit")
        return events

    def _learn(self, plan: StepPlan, seconds: float) -> None:
        """What steps cost, and from it how long a chunk of a prompt may hold up others."""
        if self.cost_model.observe(plan.work(self.cost_model.windows), seconds):
            self.bound_chunks()

    def bound_chunks(self) -> None:
        """Let chunks beside decodes be as long as the cost model allows now."""
        scheduler, model = self.scheduler, self.cost_model
        scheduler.limits = dataclasses.replace(scheduler.limits, pair_tokens=model.pair_tokens, windows=model.windows)

    def _compute(self, reservation: Reservation) -> StepResult:
        """Pack, run, sample. Touches no state of the scheduler, so whatever goes wrong here costs this batch only."""
        plan = reservation.plan
        with as_step_failure():
            self.kv_cache.copy_blocks(reservation.copies)
            block_size = self.scheduler.pool.block_size
            batch = self._packer.pack([_sequence_input(chunk, block_size) for chunk in plan.chunks])
            self.times.end("pack")
            self.before_wait()
            logits = self._runner.run(batch, self.kv_cache)
            self.times.end("run")
            positions: dict[CoreSequence, list[PositionLogprobs]] = {}
            if batch.num_rows > len(reservation.drawing):
                logits, positions = _split_rows(logits, plan)
            drawing = reservation.drawing_sequences
            if len(drawing) > len(reservation.drawing):
                logits = np.repeat(logits, [len(sequences) for sequences in reservation.drawing], axis=0)
            tokens = self._sampler.sample(logits, drawing)
            self.times.end("sample")
            return tokens, positions

    def _fail(self, sequences: Sequence[CoreSequence], error: FastServeError) -> list[Event]:
        request_ids = list(dict.fromkeys(sequence.request.request_id for sequence in sequences))
        for request_id in request_ids:
            self.scheduler.abort(request_id, completed=False)
        return [Failed(request_id, error) for request_id in request_ids]

    def keep_costs(self) -> None:
        """Let the next engine start from what this one has learned of its steps."""
        if self.cost_file is not None:
            self.cost_file.keep(self.cost_model)

    def close(self) -> None:
        """Give back what the tiers below the pool have; the engine is not used afterwards."""
        self._transfers.stop()

    def stats(self) -> EngineStats:
        pool = self.scheduler.pool
        holders, swapped = self.scheduler.holders, self.scheduler.num_swapped
        running = len({sequence.request.request_id for sequence in self._served if sequence in holders})
        return EngineStats(
            running=running,
            waiting=len(self.scheduler) - running - swapped,
            swapped=swapped,
            blocks_used=pool.num_used,
            blocks_free=pool.num_free,
            blocks_cached=pool.num_cached,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            computed_tokens=self._computed_tokens,
            steps=self._steps,
            preemptions=self.scheduler.num_preemptions,
            prefix_queries=self.scheduler.prefix_cache.num_queried_tokens,
            prefix_hits=self.scheduler.prefix_cache.num_hit_tokens,
            step_seconds=self._step_seconds,
            pool_usage=pool.num_used / pool.num_blocks,
            **self._swap_stats(),
        )

    def _swap_stats(self) -> dict[str, Any]:
        """The fields of EngineStats about the tiers below the pool."""
        swapper = self.scheduler.swapper
        counts, host = swapper.counts, swapper.slots[Tier.HOST]
        return {
            "swapped_out": counts.outs,
            "swapped_in": counts.ins,
            "swap_out_bytes": counts.blocks_out * self.kv_cache.bytes_per_block,
            "swap_in_bytes": counts.blocks_in * self.kv_cache.bytes_per_block,
            "swap_waits": self._transfers.waited,
            "blocks_swapped": sum(slots.num_used for slots in swapper.slots.values()),
            "host_usage": host.num_used / host.num_slots if host.num_slots else 0.0,
        }


def _sequence_input(chunk: Chunk, block_size: int) -> SequenceInput:
    sequence, start = chunk.sequence, chunk.start
    tokens = sequence.tokens(start, start + chunk.num_tokens)
    num_cached = max(0, len(chunk.cached_blocks) * block_size - start) if chunk.cached_blocks else 0
    return SequenceInput(tokens, start, sequence.block_table, chunk.samples, chunk.prompt_rows, num_cached)


def _split_rows(logits: Logits, plan: StepPlan) -> tuple[Logits, dict[CoreSequence, list[PositionLogprobs]]]:
    """The rows that sample, and what the others, [num_rows, vocab_size] in plan order, say about the prompts."""
    sampled: list[int] = []
    positions: dict[CoreSequence, list[PositionLogprobs]] = {}
    row = 0
    for chunk in plan.chunks:
        sequence, rows = chunk.sequence, chunk.prompt_rows
        if rows and (count := sequence.request.params.prompt_logprobs) is not None:
            start = chunk.start + rows.start + 1
            followers = sequence.tokens(start, start + len(rows))
            positions[sequence] = prompt_logprobs(logits[row : row + len(rows)], followers, count)
        row += len(rows)
        if chunk.samples:
            sampled.append(row)
            row += 1
    return logits[sampled], positions
