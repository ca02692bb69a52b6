"""How likely a token was, and which were likelier: what a client reads in ``logprobs``."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that could stand at a position, under the model's own distribution there."""

    token_id: int
    logprob: float
    """Natural log of its probability; -inf for a token the model rules out."""
    rank: int
    """1 for the likeliest token."""


PositionLogprobs = tuple[TokenLogprob, ...]
"""One position: the token that stands there, then the likeliest others, the likeliest first."""
