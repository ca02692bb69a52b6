"""The sequence that is likeliest to end soon for the work it takes goes first: the Gittins index over output lengths that are
learned from this model's own answers (:mod:`fastserve.core.policy.output_lengths`), times 1 + waiting / patience. Patience is
a multiple of the mean completion time, so that it fits any machine, model and load.

Short answers are worth a little more than long ones (``brevity``): a user who gets ten words minds a minute's wait more than one
who gets a thousand. That keeps the tail of seconds an output token below that of first come, first served.

The lengths are learned for each class of prompt lengths, with those of all prompts as the prior: in real traffic prompts of some
length come from one application and get answers of one kind. Without that, preferring short prompts can even do harm, where
they are the ones that get long answers.

Sequences of about the same age, limit and prompt left to compute have one index and stand in one bucket, by arrival. Waiting
raises all indices of a bucket alike, the oldest's most: so the whole order is a merge of the buckets, and neither time nor
a newly learned distribution ever re-sorts the queue.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import math
from collections.abc import Collection, Iterator

from fastserve.core.cost_model import CostModel
from fastserve.core.policy.output_lengths import OutputLengths, geometric_edges
from fastserve.core.sequence import Sequence

LENGTH_EDGES = geometric_edges(1, 1.2, 32_768)
"""Bounds of the bins of output tokens."""
PREFILL_EDGES = geometric_edges(16, 1.25, 131_072)
"""Bounds of the bins of prompt tokens left to compute."""

PROMPT_EDGES = geometric_edges(32, 1.5, 32_768)
"""Bounds of the classes of prompt lengths. Short and long prompts ask for different things."""

MOST_WAITED = 10.0
"""A sequence that has waited for so many times the patience goes before all that have not."""

_Kind = tuple[int, int, int, int]
"""Bins of (prompt tokens, output tokens so far, most output tokens, tokens to compute before the next one)."""


@dataclasses.dataclass(slots=True, eq=False)
class _Bucket:
    """Sequences of one kind, in order of arrival."""

    kind: _Kind
    index: float
    entries: list[_Entry] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, order=True)
class _Entry:
    """A sequence and its bucket; entries compare by order of arrival."""

    number: int
    arrived: float = dataclasses.field(compare=False)
    sequence: Sequence = dataclasses.field(compare=False)
    bucket: _Bucket = dataclasses.field(compare=False)
    num_passed: int = dataclasses.field(default=0, compare=False)
    """Bins of output tokens that the answer went through, as far as was learned from them."""


class _MeanCompletionTime:
    """Seconds from arrival to end of the answers that ended of late."""

    KEEP = 0.995
    """Weight that the past keeps at each answer."""

    def __init__(self) -> None:
        self.mean_s = 10.0  # until an answer has ended
        self.now = 0.0
        """End of the last step."""
        self._sum = self._weight = 0.0

    def learn(self, arrived: float) -> None:
        """An answer that arrived then ended with the last step."""
        self._sum = self._sum * self.KEEP + max(self.now - arrived, 0.0)
        self._weight = self._weight * self.KEEP + 1.0
        self.mean_s = max(self._sum / self._weight, 1e-6)


class GittinsIndex:
    """The highest index first. What a prefix cache holds of a prompt is not work and does not count."""

    def __init__(self, cost_model: CostModel, *, patience: float = 6.0, brevity: float = 0.25, refresh_every: int = 64) -> None:
        """``patience``: a sequence that has been here for so many mean completion times counts twice. ``brevity``: an answer of L
        tokens is worth L^-brevity. ``refresh_every``: the indices are worked out anew after so many answers (sooner while few
        were seen), one bucket with each sequence that is charged."""
        self._cost_model = cost_model
        self._patience = patience
        self._completion = _MeanCompletionTime()
        self._patience_s = patience * self._completion.mean_s
        self._refresh_every = refresh_every
        self._lengths = OutputLengths(LENGTH_EDGES, brevity=brevity)
        self._by_prompt = [
            OutputLengths(LENGTH_EDGES, prior=self._lengths, prior_weight=8.0, brevity=brevity) for _ in PROMPT_EDGES
        ]
        self._entries: dict[Sequence, _Entry] = {}
        self._buckets: dict[_Kind, _Bucket] = {}
        self._outdated: list[_Kind] = []
        self._arrivals = 0
        self._answers = 0
        self._next_refresh = 1

    def add(self, sequence: Sequence, now: float) -> None:
        self._arrivals += 1
        entry = _Entry(self._arrivals, now, sequence, self._bucket(self._kind(sequence)))
        self._entries[sequence] = entry
        entry.bucket.entries.append(entry)

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        self._completion.now = ended
        entry = self._entries[sequence]
        self._move(entry)
        reached = self._lengths.bin_of_length(len(sequence.output_token_ids))  # whether it ends there is not known here
        if entry.num_passed < reached:
            self._learn_passed(entry, reached)
        if self._outdated:
            bucket = self._buckets.get(self._outdated.pop())
            if bucket is not None:
                bucket.index = self._index(bucket.kind)

    def preempted(self, sequence: Sequence) -> None:
        self._move(self._entries[sequence])

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        entry = self._entries.pop(sequence)
        self._leave(entry)
        num_tokens = len(sequence.output_token_ids)
        if not completed or num_tokens >= sequence.request.params.max_tokens:  # it would have gone on
            self._learn_passed(entry, self._lengths.bin_of_age(num_tokens))
        else:
            self._lengths.ended(num_tokens)
            self._by_prompt[_prompt_class(sequence)].ended(num_tokens)
        if not completed:
            return
        self._completion.learn(entry.arrived)
        self._patience_s = self._patience * self._completion.mean_s
        self._answers += 1
        if self._answers >= self._next_refresh:
            self._next_refresh += min(max(self._answers // 4, 1), self._refresh_every)
            self._lengths.refresh()
            for lengths in self._by_prompt:
                lengths.refresh()
            self._outdated = list(self._buckets)

    def _learn_passed(self, entry: _Entry, reached: int) -> None:
        """The answer went on beyond the bins of output tokens below ``reached``."""
        by_prompt = self._by_prompt[_prompt_class(entry.sequence)]
        for index in range(entry.num_passed, reached):
            self._lengths.passed(index)
            by_prompt.passed(index)
        entry.num_passed = max(entry.num_passed, reached)

    def ordered(self, now: float) -> Iterator[Sequence]:
        heads = [(*self._rank(bucket.entries[0], now), 0, bucket) for bucket in self._buckets.values()]
        heapq.heapify(heads)
        while heads:
            _, _, place, bucket = heads[0]
            entries = bucket.entries
            yield entries[place].sequence
            place += 1
            if place < len(entries):
                heapq.heapreplace(heads, (*self._rank(entries[place], now), place, bucket))
            else:
                heapq.heappop(heads)

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        return iter(sorted(sequences, key=lambda sequence: self._rank(self._entries[sequence], now), reverse=reverse))

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> None:
        """The order is all there is."""

    def _rank(self, entry: _Entry, now: float) -> tuple[float, int]:
        """Smaller is more urgent."""
        waited = (now - entry.arrived) / self._patience_s
        if waited > MOST_WAITED:
            return -math.inf, entry.number  # in order of arrival: nobody waits for ever, however long there is too much to do
        return -entry.bucket.index * (1.0 + (waited if waited > 0.0 else 0.0)), entry.number

    def _kind(self, sequence: Sequence) -> _Kind:
        limit = self._lengths.bin_of_length(sequence.request.params.max_tokens)
        return _prompt_class(sequence), self._lengths.bin_of_age(len(sequence.output_token_ids)), limit, _prefill_bin(sequence)

    def _index(self, kind: _Kind) -> float:
        prompt, age, limit, prefill = kind
        costs = self._cost_model
        tokens = PREFILL_EDGES[min(prefill, len(PREFILL_EDGES) - 1)]
        context = PROMPT_EDGES[prompt] + LENGTH_EDGES[age]
        prefill_s = costs.prefill_seconds(tokens, max(0, context - tokens))
        return self._by_prompt[prompt].gittins_index(age, LENGTH_EDGES[limit + 1], prefill_s, costs.decode_seconds(context))

    def _bucket(self, kind: _Kind) -> _Bucket:
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = _Bucket(kind, self._index(kind))
        return bucket

    def _move(self, entry: _Entry) -> None:
        sequence, (prompt, age, limit, prefill) = entry.sequence, entry.bucket.kind
        age_now, prefill_now = self._lengths.bin_of_age(len(sequence.output_token_ids)), _prefill_bin(sequence)
        if age_now != age or prefill_now != prefill:
            self._leave(entry)
            entry.bucket = self._bucket((prompt, age_now, limit, prefill_now))
            bisect.insort(entry.bucket.entries, entry)

    def _leave(self, entry: _Entry) -> None:
        entries = entry.bucket.entries
        del entries[bisect.bisect_left(entries, entry)]
        if not entries:
            del self._buckets[entry.bucket.kind]


def _prompt_class(sequence: Sequence) -> int:
    return min(bisect.bisect_left(PROMPT_EDGES, len(sequence.request.prompt_token_ids)), len(PROMPT_EDGES) - 1)


def _prefill_bin(sequence: Sequence) -> int:
    before_next = sequence.num_uncomputed - 1
    return bisect.bisect_left(PREFILL_EDGES, before_next) if before_next else 0
