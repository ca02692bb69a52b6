"""What steps cost on this machine, fitted to those it has run: see :class:`~fastserve.core.step_work.StepCosts`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

from fastserve.core.attention_windows import EVERYTHING, AttentionWindows
from fastserve.core.least_squares import Moments
from fastserve.core.step_work import TERMS, StepCosts, StepWork, chunk_work
from fastserve.errors import ConfigError

MIN_SECONDS = 1e-9
"""Neither a step nor a token costs less: quanta and ratios are made of them."""


class CostModel:
    """Least squares with forgetting. Pure: time is given to it.

    The first estimate stays in the sums as a few samples at the corners of what a step can hold, so that a long stretch of equal
    steps, which says nothing about the terms by themselves, does not make them drift.
    """

    KEEP = 0.998
    """Weight that the past keeps at each step: the last 500 steps count."""
    ANCHOR_STEPS = 512
    """After so many steps what was learned until then takes the first estimate's place."""
    FIT_STEPS = 16
    """So often the costs follow what was observed."""
    CORNER_WEIGHT = 2.0
    """Of the equation of each of those few samples; that of a step counts 1."""
    OUTLIER = 2.0
    """A step that took this many times as long as predicted is counted as taking so long: the machine was interrupted, or it
    will take as long again."""

    def __init__(
        self, costs: StepCosts, *, max_num_seqs: int, max_batched_tokens: int, windows: AttentionWindows = EVERYTHING
    ) -> None:
        """``costs``: the first estimate. ``windows``: of the model's layers. The others: the budgets of a step, see
        ``StepLimits``.

        Raises ConfigError for an estimate that is not finite and positive."""
        self.windows = windows
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.restore(dataclasses.asdict(costs))

    def _anchor_at(self, values: Items[float]) -> None:
        """``values``: of the costs' fields, in their order."""
        base_s, token_s, *others = values
        self.costs = StepCosts(max(base_s, MIN_SECONDS), max(token_s, MIN_SECONDS), *others)
        self._anchor = self._corners()
        self._moments = self._anchor.copy()
        self._observed = 0

    def _corners(self) -> Moments:
        """Steps far from each other, as the model predicts them: a token, a batch of decodes, a full chunk, and both late in a
        long context."""
        sequences, tokens = self.max_num_seqs, max(2, self.max_batched_tokens)
        far = 4 * tokens
        attended = sequences * self.windows.positions(far)
        corners = Moments(len(TERMS))
        for work in (
            StepWork(1, 1, 1, 1),
            StepWork(sequences, sequences, sequences, sequences),
            StepWork(sequences, sequences, attended, attended),
            chunk_work(0, tokens, 0, self.windows),
            chunk_work(far, tokens, 0, self.windows),
        ):
            equation = (1.0, *work, self.step_seconds(work))
            *quantities, seconds = (self.CORNER_WEIGHT * each for each in equation)
            corners.add(tuple(quantities), seconds)
        return corners

    def start_from(self, samples: Items[tuple[StepWork, float]]) -> None:
        """Forget everything; what fits ``samples`` (steps and their seconds) best is the first estimate."""
        moments = Moments(len(TERMS))
        for work, seconds in samples:
            moments.add((1.0, *work), seconds)
        self._anchor_at(moments.fit())

    def limit(self, *, max_num_seqs: int, max_batched_tokens: int) -> None:
        """A step's budgets are these from now on; the estimate stays, what it was learned from is forgotten."""
        self.max_num_seqs, self.max_batched_tokens = max_num_seqs, max_batched_tokens
        self._anchor_at(dataclasses.astuple(self.costs))

    def step_seconds(self, work: StepWork) -> float:
        """Of a step that does ``work``."""
        return self.costs.seconds(work)

    @property
    def min_step_seconds(self) -> float:
        """Of the shortest step: one sequence's next token. The first quantum of FastServe's queues."""
        return self.step_seconds(StepWork(1, 1, 1, 1))

    def first_token_seconds(self, num_tokens: int) -> float:
        """How long a sequence alone takes to compute ``num_tokens`` tokens in chunks and draw one (the paper's t_init)."""
        costs, most = self.costs, self.max_batched_tokens
        further_steps = -(-num_tokens // most) - 1
        reads, pairs = self.windows.reads_in_chunks(num_tokens, most), self.windows.pairs(0, num_tokens)
        return costs.seconds(StepWork(num_tokens, 1, reads, pairs)) + further_steps * costs.base_s

    def prefill_seconds(self, num_tokens: int, start: int = 0) -> float:
        """What ``num_tokens`` tokens of a prompt after ``start`` others take from the machine, in large chunks."""
        return num_tokens * self.costs.token_s + self.windows.pairs(start, num_tokens) * self.costs.pair_s

    def decode_seconds(self, context: float = 0.0) -> float:
        """What an output token after ``context`` others takes from the machine when batches are full: its own time and its share
        of the step's."""
        costs, attended = self.costs, self.windows.positions(context)
        return costs.token_s + costs.row_s + costs.base_s / self.max_num_seqs + attended * (costs.read_s + costs.pair_s)

    @property
    def pair_tokens(self) -> float:
        """What it costs that a token attends to a position, in tokens, each with its share of a full step's base: where steps
        cost and tokens hardly do, contexts may take as long as the step itself."""
        costs = self.costs
        return costs.pair_s / (costs.token_s + costs.base_s / self.max_batched_tokens)

    def observe(self, work: StepWork, seconds: float) -> bool:
        """A step that did ``work`` took ``seconds``. Whether the costs are others now."""
        seconds = min(max(seconds, 0.0), self.OUTLIER * self.step_seconds(work))
        self._moments.add((1.0, *work), seconds, keep=self.KEEP, anchor=self._anchor)
        self._observed += 1
        if self._observed % self.FIT_STEPS:
            return False
        base_s, token_s, *others = self._moments.fit()
        self.costs = StepCosts(max(base_s, MIN_SECONDS), max(token_s, MIN_SECONDS), *others)
        if self._observed % self.ANCHOR_STEPS == 0:
            self._anchor = self._corners()
        return True

    def to_json(self) -> dict[str, float]:
        """What :meth:`restore` needs to start where this model is."""
        return dataclasses.asdict(self.costs)

    def restore(self, values: Mapping[str, Any]) -> None:
        """Forget everything and start where the model was that :meth:`to_json` gave ``values``. Raises what
        :func:`read_costs` does; then nothing has changed."""
        self._anchor_at(dataclasses.astuple(read_costs(values)))


def read_costs(values: Mapping[str, Any]) -> StepCosts:
    """Of parsed JSON. Raises ConfigError naming the key that is missing or no number of seconds."""
    for name in TERMS:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name}: got {value!r}, allowed: a finite number of seconds, at least 0")
    return StepCosts(*(float(values[name]) for name in TERMS))
