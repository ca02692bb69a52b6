"""What an iteration has to do, and what each part of that takes: the terms of the cost model."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from fastserve.core.attention_windows import EVERYTHING, AttentionWindows


class StepWork(NamedTuple):
    """The work of an iteration."""

    tokens: int
    rows: int = 0
    """Of logits, which tokens are drawn from: each takes the head, the sampler, and a response to a client."""
    reads: float = 0
    """Positions whose keys and values are read: for each chunk, those before its end, as far as its layers' windows reach."""
    pairs: float = 0
    """Of a token and a position that it attends to. Both are means over the layers."""


def chunk_work(start: int, num_tokens: int, rows: int, windows: AttentionWindows = EVERYTHING) -> StepWork:
    """Of a chunk of ``num_tokens`` tokens after ``start`` others."""
    return StepWork(num_tokens, rows, *windows.reads_and_pairs(start, num_tokens))


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
