"""How far a request has got: mutable, owned by the scheduler on the engine thread."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from fastserve.core.request import FinishReason, Request

if TYPE_CHECKING:
    from fastserve.core.beam_search import BeamCandidates, BeamSearch


class SequenceStatus(enum.Enum):
    WAITING = "waiting"
    """Holds no blocks: newly arrived, or preempted to be recomputed."""
    RUNNING = "running"
    """Holds blocks."""
    SWAPPED = "swapped"
    """Holds no blocks; what it has computed is in a tier below the pool, or on its way there or back."""
    FINISHED = "finished"
    """Ended in any way; holds no blocks."""


class Sequence:
    """An answer's tokens so far, its prompt before them, and the blocks that hold their keys and values.

    ::

        prompt_token_ids            output_token_ids
        |---------------------------|---------------|
        |<-- num_computed: keys and values in blocks -->|<- to compute ->|

    The newest output token is never computed yet: it is the input of the next step. The first answer computes the prompt;
    the others begin with its blocks, and no sequence writes to a block that stands in another's table.

    ``block_digests`` and ``num_cached`` are the prefix cache's: digests of its first full blocks, the prompt's from the start,
    and, until it is computed (again), how many tokens the cache held when it came or lost its blocks.
    """

    __slots__ = (
        "block_digests",
        "block_table",
        "candidates",
        "constraint",
        "index",
        "num_cached",
        "num_computed",
        "num_preemptions",
        "num_prompt_cached",
        "num_prompt_logprobs",
        "num_prompt_logprobs_known",
        "num_prompt_tokens",
        "output_token_ids",
        "request",
        "search",
        "started",
        "status",
        "wants_likeliest_only",
    )

    def __init__(self, request: Request, index: int = 0) -> None:
        """``index``: which of the request's answers."""
        self.request = request
        self.index = index
        self.output_token_ids: list[int] = []
        self.num_prompt_tokens = len(request.prompt_token_ids)
        wanted = index == 0 and request.params.prompt_logprobs is not None
        self.num_prompt_logprobs = self.num_prompt_tokens - 1 if wanted else 0
        """Tokens of the prompt whose log-probabilities are wanted of this answer: none, or all but the first."""
        self.num_prompt_logprobs_known = 0  # of num_prompt_logprobs; a preempted sequence keeps them
        self.num_computed = 0
        self.num_cached = 0
        self.num_prompt_cached = 0  # tokens that it found in the pool when it began
        self.num_preemptions = 0
        self.started: float | None = None  # when it first took part in an iteration, seconds on the engine's clock
        self.block_table: list[int] = []
        self.block_digests: list[bytes] = []
        self.status = SequenceStatus.WAITING
        self.search: BeamSearch | None = None
        self.candidates: BeamCandidates | None = None  # of a beam, from when they are computed until all beams move on
        self.wants_likeliest_only = request.params.wants_likeliest_only
        constraint = request.params.constraint
        self.constraint = None if constraint is None else constraint.fork()  # as far as output_token_ids, also when preempted

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + len(self.output_token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens to compute before another one can be drawn; of a sequence without blocks as far as is known."""
        return self.num_tokens - max(self.num_computed, self.num_cached)

    @property
    def rests(self) -> bool:
        """Whether there is nothing to compute until other beams are where this one is."""
        return self.candidates is not None

    def others_to_begin(self) -> list[Sequence]:
        """The request's other answers, when they begin with the next token of this one; else none."""
        if self.index != 0 or self.output_token_ids or self.search is not None:
            return []
        return [Sequence(self.request, index) for index in range(1, self.request.params.n)]

    def next_write(self, block_size: int) -> int | None:
        """The block it has already that the next computed token is written to; None when that token needs a new one."""
        place = self.num_computed // block_size
        return self.block_table[place] if place < len(self.block_table) else None

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids start..end of prompt followed by output."""
        prompt = self.request.prompt_token_ids
        size = len(prompt)
        if start >= size:
            return self.output_token_ids[start - size : end - size]
        return list(prompt[start:end]) + self.output_token_ids[max(start - size, 0) : max(end - size, 0)]

    def append(self, token_id: int, max_model_len: int) -> FinishReason | None:
        """Add a sampled token; returns why the sequence is finished, or None when it goes on."""
        self.output_token_ids.append(token_id)
        params = self.request.params
        num_outputs = len(self.output_token_ids)
        if token_id in params.stop_token_ids:  # which the sampler does not draw before min_tokens
            return FinishReason.STOP
        if self.constraint is not None and self.constraint.advance(token_id):
            return FinishReason.STOP
        if num_outputs >= params.max_tokens or self.num_tokens >= max_model_len:
            return FinishReason.LENGTH
        return None
