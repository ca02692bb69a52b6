"""The budgets of one iteration, and how long they let chunks of prompts be."""

from __future__ import annotations

import dataclasses

from fastserve.core.attention_windows import EVERYTHING, AttentionWindows
from fastserve.core.candidate import Candidate

LEAST_TOKENS = 16
"""By so many tokens, or a block if that is less, the most urgent prompt goes on however long they take."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepLimits:
    """The budgets of one iteration."""

    max_num_seqs: int
    max_batched_tokens: int
    pair_tokens: float = 0.0
    """What it costs that a token attends to a position, in tokens; 0: nothing, chunks are bounded by tokens alone."""
    windows: AttentionWindows = EVERYTHING
    """Of the model's layers: they say how many positions that are."""


class PrefillBudget:
    """What the chunks of prompts in an iteration may cost together, in tokens without a context (rule 2 of the planner)."""

    def __init__(self, limits: StepLimits, decodes: int, block_size: int) -> None:
        """``decodes``: how many sequences get their next token in the same iteration, and would wait for a longer one."""
        self._left: float = limits.max_batched_tokens - decodes
        self._pair_tokens = limits.pair_tokens if decodes else 0.0
        self._windows = limits.windows
        self._least = min(block_size, LEAST_TOKENS)
        self._whole = 0.0  # cost of all tokens of the candidate that was asked for last

    def longest(self, candidate: Candidate) -> int:
        """Tokens of the candidate that may be computed."""
        self._whole = self._cost(candidate, candidate.uncomputed)
        if self._whole <= self._left:
            return candidate.uncomputed
        longest = int(self._left)
        if self._pair_tokens:
            longest = min(longest, max(self._windows.most_tokens(self._left, candidate.start, self._pair_tokens), self._least))
        return min(candidate.uncomputed, longest)

    def spend(self, candidate: Candidate, num_tokens: int) -> None:
        """A chunk of ``num_tokens`` tokens is planned, of the candidate that :meth:`longest` was asked for last."""
        cost = self._whole if num_tokens == candidate.uncomputed else self._cost(candidate, num_tokens)
        self._left = max(0.0, self._left - cost)
        if num_tokens:
            self._least = 0

    def _cost(self, candidate: Candidate, num_tokens: int) -> float:
        return num_tokens + self._pair_tokens * self._windows.pairs(candidate.start, num_tokens)
