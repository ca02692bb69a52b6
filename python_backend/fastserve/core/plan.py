"""What one iteration will do. A plan is a proposal: nothing has changed until it is reserved and committed."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from fastserve.core.attention_windows import AttentionWindows
from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.sequence import Sequence
from fastserve.core.step_work import StepWork

NO_ROWS = range(0)


class Chunk(NamedTuple):
    """The next ``num_tokens`` uncomputed tokens of a sequence. ``samples``: they reach the end, so a token is drawn."""

    sequence: Sequence
    num_tokens: int
    samples: bool
    start: int
    """Tokens before the chunk: those computed, or those that ``cached_blocks`` hold."""
    cached_blocks: tuple[int, ...] = ()
    """Blocks that a sequence without any takes over first."""

    @property
    def prompt_rows(self) -> range:
        """The tokens of the chunk, counted from its first, after which the log-probabilities of the prompt's next token are
        wanted."""
        sequence, start = self.sequence, self.start
        if sequence.num_prompt_logprobs_known == sequence.num_prompt_logprobs:
            return NO_ROWS
        first = max(start, sequence.num_prompt_logprobs_known)
        end = min(start + self.num_tokens, sequence.num_prompt_logprobs)
        return range(first - start, max(first, end) - start)


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """The chunks of one run, most urgent first, and the sequences that give up their blocks for it or get them back."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...] = ()
    """They lose their blocks and are computed again."""
    swapped_out: tuple[Sequence, ...] = ()
    """Their blocks are copied to a tier below the pool; if there are any, ``swapped_in`` is empty."""
    swapped_in: tuple[Sequence, ...] = ()
    """Blocks are allocated for them and their bytes copied back."""
    now: float = 0.0
    """When it was made, seconds on the engine's clock."""

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that draw a token, in row order of the logits."""
        return [chunk.sequence for chunk in self.chunks if chunk.samples]

    @property
    def num_tokens(self) -> int:
        """Computed by the run."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    def work(self, windows: AttentionWindows) -> StepWork:
        """What the cost model counts of it. ``windows``: of the model's layers."""
        tokens = rows = 0
        reads = pairs = 0.0
        for chunk in self.chunks:
            num_tokens, start = chunk.num_tokens, chunk.start
            tokens += num_tokens
            rows += chunk.samples
            more_reads, more_pairs = windows.reads_and_pairs(start, num_tokens)
            reads += more_reads
            pairs += more_pairs
            if num_tokens > 1 or not chunk.samples:  # a part of a prompt
                rows += len(chunk.prompt_rows)
        return StepWork(tokens, rows, reads, pairs)


class SampledToken(NamedTuple):
    """A drawn token and, when asked for, its log-probability and those of the likeliest tokens."""

    token_id: int
    logprob: float | None = None
    logprobs: PositionLogprobs | None = None
