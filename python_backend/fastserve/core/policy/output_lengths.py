"""How long answers are, learned from those that ended, and what that says about one that has not.

The Gittins index of a job is the best ratio, over all amounts of work we might give it, of the probability that it ends within
that work to the work we expect to spend (Gittins, 1979; for queues: Scully and Harchol-Balter, 2021). Serving the highest index
first minimises the mean time in a single queue when sizes are unknown but their distribution is not. It contains the simple
rules: with sizes known it is shortest remaining time first; when the longer a job has run the sooner it ends, nobody overtakes;
when the longer it has run the longer it will, the job that has had least goes first.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence as Items


def geometric_edges(first: int, ratio: float, last: int) -> tuple[int, ...]:
    """0, ``first``, and so on, each about ``ratio`` times the one before and at least 1 more, until ``last`` is covered."""
    edges = [0, first]
    while edges[-1] < last:
        edges.append(max(edges[-1] + 1, math.ceil(edges[-1] * ratio)))
    return tuple(edges)


UNSEEN_HAZARD = 0.3
"""Chance to end in a bin of which nothing is known. Better too high than too low: who is taken to end soon is served, ends, and
so teaches how long answers are. Who is taken to go on for ever is pushed aside by every newcomer and teaches nothing."""


class OutputLengths:
    """The distribution of output lengths in bins (edges[i], edges[i + 1]], as the chance to end in a bin once it is reached.

    Learned from each bin that an answer goes through, also before it has ended (Kaplan and Meier, 1958): a policy that puts long
    answers off would else see mostly short ones end, believe that all are short, and put the long ones off for good. Answers
    that are cut short count as far as they got. Old ones are forgotten exponentially. Where little was seen, the prior speaks: a
    distribution learned from more, or :data:`UNSEEN_HAZARD`.
    """

    def __init__(
        self,
        edges: Items[int],
        *,
        prior: OutputLengths | None = None,
        keep: float = 0.9995,
        prior_weight: float = 2.0,
        unseen_hazard: float = UNSEEN_HAZARD,
        brevity: float = 0.0,
    ) -> None:
        """``prior``: what is known of answers like these, with the same edges; without one, ``unseen_hazard`` is the chance to
        end in any bin. ``keep``: weight that the past keeps at each answer that ends. ``prior_weight``: answers that the prior
        counts for in a bin. ``brevity``: see :meth:`gittins_index`."""
        self._prior = prior
        self.edges = tuple(edges)
        self._growth = 1.0 / keep
        self._weight = 1.0
        self._ended = [0.0] * (len(edges) - 1)
        self._passed = [0.0] * (len(edges) - 1)
        self._prior_weight = prior_weight
        self._unseen_hazard = unseen_hazard
        self._brevity = brevity
        self._rewards = [((low + high + 1) / 2) ** -brevity for low, high in itertools.pairwise(edges)]
        self._hazards: list[float] = []
        self.refresh()

    def passed(self, index: int) -> None:
        """An answer went on beyond a bin. Counts from the next :meth:`refresh` on, as does :meth:`ended`."""
        self._passed[index] += self._weight

    def ended(self, num_tokens: int) -> None:
        """An answer ended by itself with ``num_tokens`` tokens; it has passed the bins before."""
        self._weight *= self._growth
        self._ended[self.bin_of_length(num_tokens)] += self._weight

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
            self._passed = [count / self._weight for count in self._passed]
            self._weight = 1.0
        prior = self._prior_weight * self._weight
        unseen = self._prior._hazards if self._prior else [self._unseen_hazard] * len(self._ended)
        self._hazards = [
            (ended + prior * hazard) / (ended + passed + prior)
            for ended, passed, hazard in zip(self._ended, self._passed, unseen, strict=True)
        ]

    def gittins_index(self, age: int, limit: int, known_s: float, token_s: float) -> float:
        """Of an answer that goes on in bin ``age``: the best ratio of the reward expected to the seconds it takes.

        An answer of L tokens is worth L^-brevity: with 0 all are worth the same, which minimises the mean completion time; with 1
        the mean of completion time over length, as far as one policy can.

        ``limit``: tokens after which it ends in any case. ``known_s``: work to be done before its next token can come, beside
        that token's own. ``token_s``: work of a token.
        """
        best, goes_on = 0.0, 1.0  # chance not to have ended yet
        reward, tokens = 0.0, 0.0  # expected until then
        for index in range(age, len(self._hazards)):
            low, high = self.edges[index], self.edges[index + 1]
            if high >= limit:
                reward += goes_on * math.pow(limit, -self._brevity)
                return max(best, reward / (known_s + token_s * (tokens + goes_on * max(limit - low, 1))))
            ends = goes_on * self._hazards[index]
            goes_on -= ends
            reward += ends * self._rewards[index]
            tokens += ends * (high - low + 1) / 2 + goes_on * (high - low)
            best = max(best, reward / (known_s + token_s * tokens))
        return best
