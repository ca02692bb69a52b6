"""How far back the attention of a model's layers reaches, and what of a context a step therefore has to do with."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable


def pairs_of(start: int, num_tokens: int) -> int:
    """Pairs of a token and a position it attends to, in a chunk of ``num_tokens`` tokens after ``start`` others, where attention
    reaches all of them."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionWindows:
    """The sliding windows of a model's layers: in one of W positions a token attends to the last W, its own among them. What is
    counted is the mean over all layers, so that a layer without a window counts as much as it does where no layer has one."""

    sizes: tuple[tuple[int, int], ...] = ()
    """Windows, the shortest first, each with the number of layers that have it."""
    num_unbounded: int = 1
    """Layers without a window."""

    @classmethod
    def of_layers(cls, windows: Iterable[int | None]) -> AttentionWindows:
        """``windows``: of each layer; None: it has none."""
        counts = collections.Counter(windows)
        num_unbounded = counts.pop(None, 0)
        sizes = tuple(sorted((size, count) for size, count in counts.items() if size is not None))
        return cls(sizes, num_unbounded) if sizes else EVERYTHING

    def positions(self, context: float) -> float:
        """That a token attends to after ``context - 1`` others."""
        return self._mean(context, lambda size: min(context, size)) if self.sizes else context

    def reads(self, start: int, num_tokens: int) -> float:
        """Positions whose keys and values a chunk of ``num_tokens`` tokens after ``start`` others reads."""
        end = start + num_tokens
        return self._mean(end, lambda size: min(end, size - 1 + num_tokens)) if self.sizes else end

    def reads_and_pairs(self, start: int, num_tokens: int) -> tuple[float, float]:
        """Of a chunk. What a single token attends to is what is read, so most decodes' windows are looked at once."""
        if num_tokens == 1:
            positions = self.positions(start + 1)
            return positions, positions
        return self.reads(start, num_tokens), self.pairs(start, num_tokens)

    def reads_in_chunks(self, num_tokens: int, most: int) -> float:
        """Sum of :meth:`reads` over the chunks of a text of ``num_tokens`` tokens, each but the last ``most`` long."""
        full, rest = divmod(num_tokens, most)
        everything = most * full * (full + 1) // 2
        last = self.reads(full * most, rest) if rest else 0

        def within(size: int) -> int:
            growing = min(full, (size - 1) // most + 1)  # the first chunks end before the window leaves the beginning behind
            return most * growing * (growing + 1) // 2 + (full - growing) * (size - 1 + most)

        return (self._mean(everything, within) if self.sizes else everything) + last

    def pairs(self, start: int, num_tokens: int) -> float:
        """Of a token and a position it attends to, in a chunk of ``num_tokens`` tokens after ``start`` others."""
        everything = pairs_of(start, num_tokens)
        if not self.sizes:
            return everything

        def within(size: int) -> int:
            growing = min(max(size - start, 0), num_tokens)
            return pairs_of(start, growing) + (num_tokens - growing) * size

        return self._mean(everything, within)

    def most_tokens(self, budget: float, start: int, pair_tokens: float) -> int:
        """The longest chunk after ``start`` tokens that costs no more than ``budget`` tokens without a context would.
        ``pair_tokens``: what a pair costs, in tokens."""
        if budget <= 0:
            return 0
        taken = bounded = 0
        growing = num_layers = self._num_layers
        for size, count in self.sizes:
            if start < size:  # until this window is full, its layers attend to more and more, as do all with larger ones
                room = size - start
                longest = _most_tokens(budget, start, pair_tokens, growing / num_layers, bounded / num_layers)
                if longest < room:
                    return taken + longest
                taken += room
                budget -= room + pair_tokens * self.pairs(start, room)
                start = size
            growing, bounded = growing - count, bounded + size * count
        return taken + _most_tokens(budget, start, pair_tokens, growing / num_layers, bounded / num_layers)

    @property
    def _num_layers(self) -> int:
        return self.num_unbounded + sum(count for _, count in self.sizes)

    def _mean(self, unbounded: float, within: Callable[[int], float]) -> float:
        """Over the layers: ``unbounded`` of those without a window, ``within(W)`` of those with one of W positions."""
        total = self.num_unbounded * unbounded + sum(count * within(size) for size, count in self.sizes)
        return total / self._num_layers


EVERYTHING = AttentionWindows()
"""Of a model without windows."""


def _most_tokens(budget: float, start: int, pair_tokens: float, share: float, bounded: float) -> int:
    """The longest chunk that ``budget`` pays for where a token at position p attends to ``share * p + bounded`` positions."""
    half = pair_tokens * share / 2
    linear = 1.0 + pair_tokens * (share * start + bounded) + half  # n tokens cost half n^2 + linear n
    return int(2 * budget / (linear + math.sqrt(linear * linear + 4 * half * budget)))
