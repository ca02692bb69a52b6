"""A stand-in for a grammar: it is easy to see whether an answer follows it, and whether it moved as it should."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fastserve.errors import FastServeError
from tests.hashing_runner import VOCAB_SIZE

CLASSES = 3


class SumConstraint:
    """Every token leaves the same remainder as the sum of those before it and a ``start``; ``longest`` of them and no more,
    and an end after any ``shortest``. Implements ``core.constraint.Constraint`` and remembers what it took."""

    def __init__(
        self, longest: int, shortest: int = 0, *, start: int = 0, ends: Iterable[int] = (), vocab_size: int = VOCAB_SIZE
    ) -> None:
        self.longest, self.shortest, self.start = longest, shortest, start
        self.ends, self.vocab_size = frozenset(ends), vocab_size
        self.taken: list[int] = []
        self.error: FastServeError | None = None
        """Raised when asked what is allowed."""

    def fork(self) -> SumConstraint:
        other = SumConstraint(self.longest, self.shortest, start=self.start, ends=self.ends, vocab_size=self.vocab_size)
        other.taken, other.error = list(self.taken), self.error
        return other

    def allowed(self) -> bytes:
        if self.error is not None:
            raise self.error
        bits = np.arange(self.vocab_size) % CLASSES == (self.start + sum(self.taken)) % CLASSES
        bits[list(self.ends)] = len(self.taken) >= self.shortest
        return np.packbits(bits, bitorder="little").tobytes()

    def advance(self, token_id: int) -> bool:
        self.taken.append(token_id)
        return len(self.taken) == self.longest

    def follows(self, token_ids: Sequence[int]) -> bool:
        """Whether the tokens, an end among them or not, are the beginning of an answer."""
        text = token_ids[:-1] if token_ids and token_ids[-1] in self.ends else token_ids
        ended = len(text) < len(token_ids)
        fits = all(token % CLASSES == (self.start + sum(text[:place])) % CLASSES for place, token in enumerate(text))
        return fits and len(text) <= self.longest and (not ended or len(text) >= self.shortest)
