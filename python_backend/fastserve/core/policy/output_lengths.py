"""How long answers are, learned from those that ended, and what that says about one that has not.

The Gittins index of a job is the best ratio, over all amounts of work we might give it, of the probability that it ends within
that work to the work we expect to spend (Gittins, 1979; for queues: Scully and Harchol-Balter, 2021). Serving the highest index
first minimises the mean time in a single queue when sizes are unknown but their distribution is not. It contains the simple
rules: with sizes known it is shortest remaining time first; when the longer a job has run the sooner it ends, nobody overtakes;
when the longer it has run the longer it will, the job that has had least goes first.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence as Items


def geometric_edges(first: int, ratio: float, last: int) -> tuple[int, ...]:
    """0, ``first``, and so on, each about ``ratio`` times the one before and at least 1 more, until ``last`` is covered."""
    edges = [0, first]
    while edges[-1] < last:
        edges.append(max(edges[-1] + 1, math.ceil(edges[-1] * ratio)))
    return tuple(edges)


class OutputLengths:
    """The distribution of output lengths in bins (edges[i], edges[i + 1]], as the chance to end in a bin once it is reached.

    Answers that were cut short say only that they got so far (Kaplan and Meier, 1958). Old answers are forgotten exponentially.
    Where little was seen, the prior speaks: a distribution learned from more, or that all orders of magnitude are equally likely,
    as heavy-tailed as text can be.
    """

    def __init__(
        self, edges: Items[int], *, prior: OutputLengths | None = None, keep: float = 0.9995, prior_weight: float = 2.0
    ) -> None:
        """``prior``: what is known of answers like these, with the same edges. ``keep``: weight that the past keeps at each
        answer. ``prior_weight``: answers that the prior counts for in a bin."""
        self._prior = prior
        self.edges = tuple(edges)
        self._growth = 1.0 / keep
        self._weight = 1.0
        self._ended = [0.0] * (len(edges) - 1)
        self._cut = [0.0] * (len(edges) - 1)
        self._prior_weight = prior_weight
        self._hazards: list[float] = []
        self.refresh()

    def learn(self, num_tokens: int, *, completed: bool) -> None:
        """An answer ended with ``num_tokens`` tokens, or was cut short there. Counts from the next :meth:`refresh` on."""
        self._weight *= self._growth
        (self._ended if completed else self._cut)[self.bin_of_length(num_tokens)] += self._weight

    def bin_of_length(self, num_tokens: int) -> int:
        """The bin that an answer of ``num_tokens`` tokens ends in; the last one for any beyond."""
        return min(max(bisect.bisect_left(self.edges, num_tokens) - 1, 0), len(self._ended) - 1)

    def bin_of_age(self, num_tokens: int) -> int:
        """The bin in which an answer that goes on after ``num_tokens`` tokens may end first."""
        return min(bisect.bisect_right(self.edges, num_tokens) - 1, len(self._ended) - 1)

    def refresh(self) -> None:
        """Work out the chances anew from what was learned."""
        if self._weight > 1e100:  # only ratios of weights matter
            self._ended = [count / self._weight for count in self._ended]
            self._cut = [count / self._weight for count in self._cut]
            self._weight = 1.0
        prior = self._prior_weight * self._weight
        reached = 0.0
        hazards = []
        for index in range(len(self._ended) - 1, -1, -1):
            reached += self._ended[index] + self._cut[index]
            prior_hazard = self._prior._hazards[index] if self._prior else 1.0 / (len(self._ended) - index)
            hazards.append((self._ended[index] + prior * prior_hazard) / (reached + prior))
        self._hazards = hazards[::-1]

    def gittins_index(self, age: int, limit: int, known_s: float, token_s: float) -> float:
        """Of an answer that goes on in bin ``age``, 1/seconds.

        ``limit``: tokens after which it ends in any case. ``known_s``: work to be done before its next token can come, beside
        that token's own. ``token_s``: work of a token.
        """
        best, goes_on, tokens = 0.0, 1.0, 0.0  # chance not to have ended yet, tokens expected until then
        for index in range(age, len(self._hazards)):
            low, high = self.edges[index], self.edges[index + 1]
            if high >= limit:
                return max(best, 1.0 / (known_s + token_s * (tokens + goes_on * max(limit - low, 1))))
            ends = goes_on * self._hazards[index]
            goes_on -= ends
            tokens += ends * (high - low + 1) / 2 + goes_on * (high - low)
            best = max(best, (1.0 - goes_on) / (known_s + token_s * tokens))
        return best
