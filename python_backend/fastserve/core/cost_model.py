"""What a step costs: ``base_s + token_s * tokens`` seconds, fitted to the steps this machine has run.

A step reads the weights once, whatever it computes (``base_s``), and works on each token (``token_s``). Where the first term
rules, running more sequences together is almost free (memory bound); where the second does, it only shares the machine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

from fastserve.errors import ConfigError

MIN_SECONDS = 1e-9
"""No term of the model is smaller: quanta and ratios are made of them."""


@dataclasses.dataclass(slots=True)
class _Moments:
    """Weighted sums over samples (x tokens, y seconds): all that a straight line's least squares need."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float, keep: float) -> None:
        """Count a sample once and everything before it ``keep`` times."""
        self.weight = self.weight * keep + 1.0
        self.x = self.x * keep + x
        self.y = self.y * keep + y
        self.xx = self.xx * keep + x * x
        self.xy = self.xy * keep + x * y

    def line(self) -> tuple[float, float]:
        """(intercept, slope), neither below MIN_SECONDS: the best line through the samples that is so."""
        spread = self.xx * self.weight - self.x * self.x
        slope = (self.xy * self.weight - self.x * self.y) / spread if spread > 0.0 else 0.0
        if slope < MIN_SECONDS:
            return max(self.y / self.weight, MIN_SECONDS), MIN_SECONDS
        intercept = (self.y - slope * self.x) / self.weight
        if intercept < MIN_SECONDS:
            return MIN_SECONDS, max(self.xy / self.xx, MIN_SECONDS)
        return intercept, slope


class CostModel:
    """Recursive least squares with forgetting, in the form of weighted sums. Pure: time is given to it.

    The first estimate stays in the sums as a few samples at both ends of what a step can hold, so that a long stretch of equal
    steps, which says nothing about the slope, does not make it drift.
    """

    KEEP = 0.998
    """Weight that the past keeps at each step: the last 500 steps count."""
    ANCHOR_STEPS = 500
    """After so many steps what was learned until then takes the first estimate's place."""
    OUTLIER = 8.0
    """A step that took this many times as long as predicted is counted as taking so long: the machine was interrupted."""

    def __init__(self, base_s: float, token_s: float, *, max_num_seqs: int, max_batched_tokens: int) -> None:
        """``base_s``, ``token_s``: the first estimate. The others: the budgets of a step, see ``StepLimits``.

        Raises ConfigError for an estimate that is not finite and positive."""
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.restore({"base_s": base_s, "token_s": token_s})

    def _anchor_at(self, base_s: float, token_s: float) -> None:
        self.base_s, self.token_s = base_s, token_s
        self._anchor = self._line_samples()
        self._moments = dataclasses.replace(self._anchor)
        self._observed = 0

    def _line_samples(self) -> _Moments:
        """A step of one token and a full one, as the model predicts them."""
        moments = _Moments()
        for tokens in (1, max(2, self.max_batched_tokens)):
            moments.add(tokens, self.step_seconds(tokens), 1.0)
        return moments

    def start_from(self, samples: Items[tuple[int, float]]) -> None:
        """Forget everything; the best line through ``samples`` (tokens of a step, its seconds) is the first estimate."""
        moments = _Moments()
        for num_tokens, seconds in samples:
            moments.add(num_tokens, seconds, 1.0)
        self._anchor_at(*moments.line())

    def limit(self, *, max_num_seqs: int, max_batched_tokens: int) -> None:
        """A step's budgets are these from now on; the estimate stays, what it was learned from is forgotten."""
        self.max_num_seqs, self.max_batched_tokens = max_num_seqs, max_batched_tokens
        self._anchor_at(self.base_s, self.token_s)

    def step_seconds(self, num_tokens: int) -> float:
        """Of a step over ``num_tokens`` tokens, whosever they are."""
        return self.base_s + self.token_s * num_tokens

    @property
    def min_step_seconds(self) -> float:
        """Of the shortest step: one sequence's next token. The first quantum of FastServe's queues."""
        return self.step_seconds(1)

    def first_token_seconds(self, num_tokens: int) -> float:
        """How long a sequence alone takes to compute ``num_tokens`` tokens in chunks and draw one (the paper's t_init)."""
        return math.ceil(num_tokens / self.max_batched_tokens) * self.base_s + num_tokens * self.token_s

    @property
    def decode_work_s(self) -> float:
        """What an output token takes from the machine when batches are full: its own time and its share of the step's."""
        return self.token_s + self.base_s / self.max_num_seqs

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step over ``num_tokens`` tokens took ``seconds``."""
        moments = self._moments
        moments.add(num_tokens, min(max(seconds, 0.0), self.OUTLIER * self.step_seconds(num_tokens)), self.KEEP)
        anchor, lost = self._anchor, 1.0 - self.KEEP
        moments.weight += anchor.weight * lost
        moments.x += anchor.x * lost
        moments.y += anchor.y * lost
        moments.xx += anchor.xx * lost
        moments.xy += anchor.xy * lost
        self.base_s, self.token_s = moments.line()
        self._observed += 1
        if self._observed % self.ANCHOR_STEPS == 0:
            self._anchor = self._line_samples()

    def to_json(self) -> dict[str, float]:
        """What :meth:`restore` needs to start where this model is."""
        return {"base_s": self.base_s, "token_s": self.token_s}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Forget everything and start where the model was that :meth:`to_json` gave ``values``. Raises ConfigError naming the key
        that is missing or no number of seconds; then nothing has changed."""
        for name in ("base_s", "token_s"):
            value = values.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: got {value!r}, allowed: a finite number of seconds, at least 0")
        self._anchor_at(max(values["base_s"], MIN_SECONDS), max(values["token_s"], MIN_SECONDS))
