"""One run of an encoder over the sequences of many requests: plan, run, commit.

Like ``Engine`` it is single-threaded and knows nothing of threads, text or Triton. An encoder keeps nothing from one run to the
next, so there is nothing to reserve: until ``commit``, a plan has changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastserve.core.encoder_scheduler import EncoderPlan, EncoderScheduler
from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.core.events import Aborted, Event, Failed
from fastserve.engine.failures import as_step_failure, deadline_passed
from fastserve.engine.stats import EngineStats
from fastserve.errors import FastServeError, StepFailed

FloatArray = npt.NDArray[np.float32]


class SequenceRunner(Protocol):
    """What the engine needs of an encoder's runner."""

    def run(self, sequences: Sequence[TokenSequence]) -> list[FloatArray]:
        """One array for each sequence, which no later run writes to; raises StepFailed."""


class EncoderEngine:
    """Turns submitted requests into events, one run at a time."""

    def __init__(self, scheduler: EncoderScheduler, runner: SequenceRunner, *, clock: Callable[[], float]) -> None:
        """``clock``: seconds, monotonic."""
        self.scheduler = scheduler
        self.before_wait: Callable[[], None] = lambda: None
        """Called by :meth:`step` when everything is ready for the model to run."""
        self._runner = runner
        self._clock = clock
        self.reset_counters()

    def reset_counters(self) -> None:
        """Start counting again: what was run so far was not for a client."""
        self._tokens = self._steps = 0
        self._step_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return len(self.scheduler) > 0

    def submit(self, request: EncodingRequest) -> list[Event]:
        """Accept a request, or say at once why not."""
        try:
            self.scheduler.add(request)
        except FastServeError as error:
            return [Failed(request.request_id, error)]
        return []

    def abort(self, request_id: int, index: int | None = None) -> list[Event]:
        """Withdraw a request; nothing happens when it has ended already. ``index``: an encoding has but one answer."""
        return [Aborted(request_id)] if self.scheduler.abort(request_id) else []

    def fail_all(self, error: FastServeError) -> list[Event]:
        """End every unfinished request with ``error``."""
        ended = self.scheduler.request_ids
        for request_id in ended:
            self.scheduler.finish(request_id)
        return [Failed(request_id, error) for request_id in ended]

    def step(self) -> list[Event]:
        """One run. A fault of a request or of the model becomes Failed events; what is raised is a bug."""
        now = self._clock()
        events: list[Event] = [deadline_passed(request_id) for request_id in self.scheduler.expired(now)]
        if events or not self.has_work:
            return events  # handed over now, so that a bug in what follows cannot swallow an ending
        plan = self.scheduler.plan()
        if not plan.sequences:
            raise RuntimeError(f"{len(self.scheduler)} unfinished requests, but none can proceed")
        events = self.scheduler.commit(plan, self._execute(plan))
        self._step_seconds += self._clock() - now
        return events

    def _execute(self, plan: EncoderPlan) -> Sequence[FloatArray | StepFailed]:
        """An output or an error for each sequence; a retryable failure gets one more try."""
        try:
            outputs = self._run_with_retry(plan.sequences)
        except StepFailed as error:
            return [error] * len(plan.sequences)
        self._steps += 1
        self._tokens += sum(len(sequence.token_ids) for sequence in plan.sequences)
        return [_finite(output) for output in outputs]

    def _run_with_retry(self, sequences: Sequence[TokenSequence]) -> list[FloatArray]:
        try:
            return self._run(sequences)
        except StepFailed as error:
            if not error.retryable:
                raise
        return self._run(sequences)

    def _run(self, sequences: Sequence[TokenSequence]) -> list[FloatArray]:
        with as_step_failure():
            self.before_wait()
            return self._runner.run(sequences)

    def stats(self) -> EngineStats:
        """``running``: the requests that the next run takes; ``prompt_tokens``: every token that was encoded."""
        running = len(set(self.scheduler.plan().request_ids))
        return EngineStats(
            running=running,
            waiting=len(self.scheduler) - running,
            prompt_tokens=self._tokens,
            steps=self._steps,
            step_seconds=self._step_seconds,
        )


def _finite(output: FloatArray) -> FloatArray | StepFailed:
    """The output, or an error when no answer can be made of it."""
    flat = output.reshape(-1)
    # The square of the length is the cheapest look at every number; it may overflow where no number is infinite.
    if math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all()):
        return output
    return StepFailed("the model's output for this request is not finite")
