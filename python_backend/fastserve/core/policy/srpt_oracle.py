"""Shortest remaining processing time with the true lengths, which no server knows: the bar that benchmarks measure against."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Mapping

from fastserve.core.cost_model import CostModel
from fastserve.core.sequence import Sequence


class ShortestRemainingFirst:
    """The least work left goes first, the earlier arrival among equals. It may starve a long request for ever."""

    def __init__(self, cost_model: CostModel, output_lengths: Mapping[int, int]) -> None:
        """``output_lengths``: tokens that each request will have drawn when it ends, by request id."""
        self._cost_model = cost_model
        self._output_lengths = output_lengths
        self._ranks: dict[Sequence, tuple[float, int]] = {}
        self._queue: list[tuple[tuple[float, int], Sequence]] = []
        self._arrivals = 0

    def add(self, sequence: Sequence, now: float) -> None:
        self._arrivals += 1
        self._enter(sequence, self._arrivals)

    def charge(self, sequence: Sequence, num_tokens: int, started: float, ended: float) -> None:
        self._enter(sequence, self._leave(sequence))

    def preempted(self, sequence: Sequence) -> None:
        self._enter(sequence, self._leave(sequence))

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        self._leave(sequence)

    def ordered(self, now: float) -> Iterator[Sequence]:
        return (sequence for _, sequence in self._queue)

    def among(self, sequences: Collection[Sequence], now: float, *, reverse: bool = False) -> Iterator[Sequence]:
        return iter(sorted(sequences, key=self._ranks.__getitem__, reverse=reverse))

    def next_schedule_s(self, sequence: Sequence, batch_size: int, now: float) -> None:
        """The order is all there is."""

    def _enter(self, sequence: Sequence, number: int) -> None:
        costs = self._cost_model
        to_draw = self._output_lengths[sequence.request.request_id] - len(sequence.output_token_ids)
        prefill_s = costs.prefill_seconds(sequence.num_uncomputed - 1, sequence.num_computed)
        work = prefill_s + to_draw * costs.decode_seconds(sequence.num_tokens + to_draw / 2)
        rank = self._ranks[sequence] = (work, number)
        bisect.insort(self._queue, (rank, sequence))

    def _leave(self, sequence: Sequence) -> int:
        """The sequence's number."""
        rank = self._ranks.pop(sequence)
        del self._queue[bisect.bisect_left(self._queue, (rank,))]
        return rank[1]
