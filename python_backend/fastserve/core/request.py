"""What was asked: immutable, built by the thread that received it, read by every other."""

from __future__ import annotations

import dataclasses
import enum

from fastserve.core.constraint import Constraint


class FinishReason(enum.Enum):
    """Why a generation that succeeded ended. Values are what a client reads in ``finish_reason``."""

    STOP = "stop"
    LENGTH = "length"


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to end. Ranges are checked where requests are parsed (``tasks/``)."""

    n: int = 1
    """Answers to one prompt, each a sequence of its own."""
    num_beams: int = 1
    """Beams of a beam search, whose ``n`` best answers are wanted; 1: tokens are drawn."""
    length_penalty: float = 1.0
    """Of a beam search: an answer's score is its log-probability over its length to this power."""
    early_stopping: bool | str = False
    """Of a beam search. True: ``num_beams`` answers end it; False, "never": that no better one is likely, is possible."""
    max_tokens: int = 16
    min_tokens: int = 0
    """Tokens before the first that may end the generation."""
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    """Always concrete here: a request without a seed has got a random one when it was parsed."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end the generation: the model's end-of-sequence ids (unless ignore_eos) and the request's own."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Runs of token ids that must not come up in the output; none is empty."""
    return_logprobs: bool = False
    """Whether the log-probability of each generated token is wanted."""
    logprobs: int | None = None
    """How many of the likeliest tokens are wanted for each generated one; None: not even its own place among them."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first."""
    constraint: Constraint | None = None
    """What every answer has to look like, at its beginning; None: anything."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def takes_likeliest(self) -> bool:
        """Whether every token is simply the likeliest of the model's own distribution."""
        changes = self.has_penalties or self.min_tokens or self.bad_words or self.constraint is not None
        return self.greedy and not changes and self.num_beams == 1

    @property
    def wants_likeliest_only(self) -> bool:
        """Whether nothing else of the distribution is asked for either."""
        return self.takes_likeliest and not self.return_logprobs and self.logprobs is None


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One generation request in tokens."""

    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    deadline: float | None = None
    """Seconds on the engine's clock after which the request is given up."""
    return_timing: bool = False
    """Whether each TokenEvent tells how the request has fared."""
    priority: int = 0
    """Class of urgency, the lowest first; only for the policy that serves by classes."""
    tenant: str = ""
    """On whose behalf, for policies that share the machine fairly."""
    cache_salt: str = ""
    """Only requests with the same one share blocks of the prefix cache."""
