"""A load on an engine in this process, and what each of its iterations took."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from fastserve.core.events import Failed, TokenEvent
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.engine import Engine
from fastserve.engine.step_times import PHASES
from fastserve.errors import ToolError

BETWEEN = "between"
"""What is no phase of an iteration: handing in requests, reading events."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One iteration. ``seconds``: by phase, and between it and the one before. ``computed``: tokens that were run;
    ``answered``: tokens that answers got."""

    seconds: dict[str, float]
    computed: int
    answered: int

    @property
    def only_decodes(self) -> bool:
        return self.computed == self.answered


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """The requests of one measurement, by their lengths in tokens; ``prompts`` and ``outputs`` are as long as one another."""

    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]

    @classmethod
    def draw(cls, lengths: Sequence[tuple[int, int]], vocab_size: int, chance: random.Random) -> Load:
        """``lengths``: prompt and output of each request. Prompts are random token ids."""
        prompts = tuple(tuple(chance.randrange(vocab_size) for _ in range(prompt)) for prompt, _ in lengths)
        return cls(prompts, tuple(output for _, output in lengths))

    def requests(self, params: SamplingParams) -> list[Request]:
        pairs = zip(self.prompts, self.outputs, strict=True)
        return [
            Request(number, prompt, dataclasses.replace(params, max_tokens=output))
            for number, (prompt, output) in enumerate(pairs)
        ]


def run(engine: Engine, requests: Sequence[Request], clock: Callable[[], float], progress: Callable[[int], None]) -> list[Step]:
    """Hand in every request at once and step until all have ended. ``progress`` is told the tokens that answers got.

    ``clock``: the engine's. Raises :class:`ToolError` when a request fails.
    """
    steps: list[Step] = []
    before, computed, ended = dict(engine.times.seconds), engine.stats().computed_tokens, clock()
    for request in requests:
        _raise_failures(engine.submit(request))
    while engine.has_work:
        started = clock()
        events = engine.step()
        _raise_failures(events)
        now, total = dict(engine.times.seconds), engine.stats().computed_tokens
        if total == computed:  # it waited for copies between pool and tiers: no iteration, but time between two
            before = now
            continue
        between, ended = started - ended, clock()
        answered = sum(isinstance(event, TokenEvent) for event in events)
        seconds = {phase: now[phase] - before[phase] for phase in PHASES}
        steps.append(Step({**seconds, BETWEEN: between}, total - computed, answered))
        before, computed = now, total
        progress(answered)
    return steps


def _raise_failures(events: Sequence[object]) -> None:
    for event in events:
        if isinstance(event, Failed):
            raise ToolError(f"a request failed: {event.error}")


def mean_seconds(steps: Sequence[Step]) -> dict[str, float]:
    """Of one iteration, by phase."""
    return {phase: sum(step.seconds[phase] for step in steps) / len(steps) for phase in (*PHASES, BETWEEN)}
