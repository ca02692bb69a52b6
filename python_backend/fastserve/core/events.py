"""What an iteration says about requests. Each request gets exactly one ending: the TokenEvent that ends the last of its answers,
an Encoded, a Failed, or an Aborted."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.request import FinishReason
from fastserve.errors import FastServeError


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """How a request has fared so far."""

    started: float
    """When it first took part in an iteration, seconds on the engine's clock."""
    num_preemptions: int
    num_prompt_cached: int
    """Tokens of the prompt that were not computed: the prefix cache held them."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. With a ``finish_reason`` it is the last of its answer."""

    request_id: int
    token_id: int
    logprob: float | None
    """Natural log of the token's probability before sampling changes; None unless asked for."""
    finish_reason: FinishReason | None
    logprobs: PositionLogprobs | None = None
    """The token among the likeliest ones; None unless asked for."""
    timeline: Timeline | None = None
    """None unless asked for."""
    index: int = 0
    """Which of the request's answers."""
    num_open: int = 0
    """Other answers of the request that have not ended. With a ``finish_reason`` and none of these it is the request's last."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The next tokens of a prompt, from its second on, among the likeliest ones. All come before the first TokenEvent."""

    request_id: int
    positions: tuple[PositionLogprobs, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Every sequence of an EncodingRequest was run. Always the last event of its request."""

    request_id: int
    outputs: tuple[Any, ...]
    """For each sequence, in the request's order, a float32 array: [n], [num_tokens, n] or [num_rows, n] by the graph's kind
    of output. No later run writes to them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error."""

    request_id: int
    error: FastServeError


@dataclasses.dataclass(frozen=True, slots=True)
class Aborted:
    """The request was withdrawn; what it held is free."""

    request_id: int


Event = TokenEvent | PromptLogprobs | Encoded | Failed | Aborted


def is_ending(event: Event) -> bool:
    """Whether nothing more comes of the request."""
    if isinstance(event, TokenEvent):
        return event.finish_reason is not None and event.num_open == 0
    return not isinstance(event, PromptLogprobs)
