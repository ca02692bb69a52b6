"""What one iteration will do. A plan is a proposal: nothing has changed until it is reserved and committed."""

from __future__ import annotations

import dataclasses

from fastserve.core.sequence import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``num_tokens`` uncomputed tokens of a sequence. ``samples``: they reach the end, so a token is drawn."""

    sequence: Sequence
    num_tokens: int
    samples: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """The chunks of one run, most urgent first, and the sequences that give up their blocks for it."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...] = ()

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that draw a token, in row order of the logits."""
        return [chunk.sequence for chunk in self.chunks if chunk.samples]


@dataclasses.dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token and, when asked for, its log-probability."""

    token_id: int
    logprob: float | None = None
