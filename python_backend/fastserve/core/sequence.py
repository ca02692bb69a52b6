"""How far a request has got: mutable, owned by the scheduler on the engine thread."""

from __future__ import annotations

import enum

from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.request import FinishReason, Request


class SequenceStatus(enum.Enum):
    WAITING = "waiting"
    """Holds no blocks: newly arrived, or preempted to be recomputed."""
    RUNNING = "running"
    """Holds blocks."""
    FINISHED = "finished"
    """Ended in any way; holds no blocks."""


class Sequence:
    """A request's tokens so far and the blocks that hold their keys and values.

    ::

        prompt_token_ids            output_token_ids
        |---------------------------|---------------|
        |<-- num_computed: keys and values in blocks -->|<- to compute ->|

    The newest output token is never computed yet: it is the input of the next step.
    """

    __slots__ = (
        "block_table",
        "num_computed",
        "num_preemptions",
        "output_token_ids",
        "prompt_logprobs",
        "request",
        "started",
        "status",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.output_token_ids: list[int] = []
        self.prompt_logprobs: list[PositionLogprobs] = []  # of the prompt's second token and those after it, as far as known
        self.num_computed = 0
        self.num_preemptions = 0
        self.started: float | None = None  # when it first took part in an iteration, seconds on the engine's clock
        self.block_table: list[int] = []
        self.status = SequenceStatus.WAITING

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def num_prompt_logprobs(self) -> int:
        """Tokens of the prompt whose log-probabilities are wanted: none, or all but the first."""
        return 0 if self.request.params.prompt_logprobs is None else len(self.request.prompt_token_ids) - 1

    @property
    def num_prompt_logprobs_known(self) -> int:
        """How many of them are known already; a preempted sequence keeps them."""
        return len(self.prompt_logprobs)

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids start..end of prompt followed by output."""
        prompt = self.request.prompt_token_ids
        size = len(prompt)
        return list(prompt[start:end]) + self.output_token_ids[max(start - size, 0) : max(end - size, 0)]

    def append(self, token_id: int, max_model_len: int) -> FinishReason | None:
        """Add a sampled token; returns why the sequence is finished, or None when it goes on."""
        self.output_token_ids.append(token_id)
        params = self.request.params
        num_outputs = len(self.output_token_ids)
        if token_id in params.stop_token_ids:  # which the sampler does not draw before min_tokens
            return FinishReason.STOP
        if num_outputs >= params.max_tokens or self.num_tokens >= max_model_len:
            return FinishReason.LENGTH
        return None
