"""What is asked of an encoder: token sequences that are run once, whole, in any company."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence of a run: a text, a pair of texts, or a window of a long document, special tokens included."""

    token_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] = ()
    """0 or 1 for each token, for models that tell two texts apart; empty: all 0."""
    rows: tuple[int, ...] = ()
    """Tokens whose rows are wanted, by index, of a graph that computes only those (fill-mask); else empty."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncodingRequest:
    """All sequences of one client's request; it is answered when the last of them was run."""

    request_id: int
    sequences: tuple[TokenSequence, ...]
    """At least one, none empty."""
    deadline: float | None = None
    """Seconds on the engine's clock after which the request is given up."""
