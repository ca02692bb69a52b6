"""What an iteration has to do, and what each part of that takes: the terms of the cost model."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple


class StepWork(NamedTuple):
    """The work of an iteration."""

    tokens: int
    rows: int = 0
    """Of logits, which tokens are drawn from: each takes the head, the sampler, and a response to a client."""
    reads: int = 0
    """Positions whose keys and values are read: for each chunk, those before its end."""
    pairs: int = 0
    """Of a token and a position that it attends to."""


def pairs_of(start: int, num_tokens: int) -> int:
    """Pairs of a token and a position it attends to, in a chunk of ``num_tokens`` tokens after ``start`` others."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2


def chunk_work(start: int, num_tokens: int, rows: int) -> StepWork:
    """Of a chunk of ``num_tokens`` tokens after ``start`` others."""
    return StepWork(num_tokens, rows, start + num_tokens, pairs_of(start, num_tokens))


@dataclasses.dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds. A step reads the weights once, whatever it computes (``base_s``), and works on each token (``token_s``). Where the
    first term rules, running more sequences together is almost free (memory bound); where the second does, it only shares the
    machine. Decodes wait for the memory that a context is in (``read_s``), chunks of prompts compute with it (``pair_s``), some
    times faster for each token and position."""

    base_s: float
    token_s: float
    row_s: float = 0.0
    read_s: float = 0.0
    pair_s: float = 0.0

    def seconds(self, work: StepWork) -> float:
        """Of a step that does ``work``."""
        return (
            self.base_s
            + self.token_s * work.tokens
            + self.row_s * work.rows
            + self.read_s * work.reads
            + self.pair_s * work.pairs
        )


TERMS = tuple(field.name for field in dataclasses.fields(StepCosts))


def most_tokens(budget: float, start: int, pair_tokens: float) -> int:
    """The longest chunk after ``start`` tokens that costs no more than ``budget`` tokens without a context would.
    ``pair_tokens``: what a pair costs, in tokens."""
    half = pair_tokens / 2
    linear = 1.0 + pair_tokens * start + half  # n tokens cost n + pair_tokens * pairs_of(start, n) = half n^2 + linear n
    return int(2 * budget / (linear + math.sqrt(linear * linear + 4 * half * budget))) if budget > 0 else 0
