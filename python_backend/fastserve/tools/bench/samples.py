"""What was seen of each request, and the figures that come of it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

SHARES = (50, 95, 99)
"""The percentiles that are told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are in seconds on one clock. ``started``: in an open loop when it was due, even if it was sent late, so
    that a slow server cannot hide behind a slow client. ``arrivals``: (time, output tokens) of each response; an encoder's has no
    tokens. ``error``: its status, if it failed."""

    started: float
    ended: float
    arrivals: tuple[tuple[float, int], ...] = ()
    input_tokens: int | None = None
    error: str | None = None
    message: str = ""

    @property
    def output_tokens(self) -> int:
        return sum(tokens for _, tokens in self.arrivals)

    @property
    def completion(self) -> float:
        """Job completion time: from its start to its last response, seconds."""
        return self.ended - self.started

    @property
    def first(self) -> float:
        """Time to the first token, seconds."""
        return self.arrivals[0][0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies in seconds, one for each token after the first response. The tokens of one response share
        the time since the response before."""
        following = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [(now - before) / tokens for (before, _), (now, tokens) in following for _ in range(tokens)]


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """Of one measure, in seconds. ``percentiles`` by :data:`SHARES`."""

    mean: float
    percentiles: dict[int, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """None of nothing."""
        if not values:
            return None
        return cls(float(np.mean(values)), {share: float(np.percentile(values, share)) for share in SHARES})


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one load. ``seconds``: from the first start to the last end. ``failures`` by status."""

    requests: int
    seconds: float
    failures: dict[str, int]
    input_tokens: int
    output_tokens: int
    distributions: dict[str, Distribution]
    """By measure: "time_to_first_token", "inter_token" and "normalized" (seconds an output token) of language models,
    "completion" of all."""

    @property
    def succeeded(self) -> int:
        return self.requests - sum(self.failures.values())

    @property
    def requests_per_second(self) -> float:
        return self.succeeded / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    def as_json(self) -> dict[str, Any]:
        rates = {"requests_per_second": self.requests_per_second, "output_tokens_per_second": self.tokens_per_second}
        return {**dataclasses.asdict(self), "succeeded": self.succeeded, **rates}


def summarize(samples: Sequence[Sample]) -> Summary:
    """``samples``: at least one. Failed requests count as failures and in nothing else."""
    good = [sample for sample in samples if sample.error is None]
    writers = [sample for sample in good if sample.output_tokens]
    measures = {
        "time_to_first_token": [sample.first for sample in writers],
        "inter_token": [gap for sample in writers for gap in sample.gaps],
        "normalized": [sample.completion / sample.output_tokens for sample in writers],
        "completion": [sample.completion for sample in good],
    }
    found = {name: Distribution.of(values) for name, values in measures.items()}
    return Summary(
        requests=len(samples),
        seconds=max(max(sample.ended for sample in samples) - min(sample.started for sample in samples), 1e-9),
        failures=dict(collections.Counter(sample.error for sample in samples if sample.error is not None)),
        input_tokens=sum(sample.input_tokens or 0 for sample in good),
        output_tokens=sum(sample.output_tokens for sample in good),
        distributions={name: distribution for name, distribution in found.items() if distribution is not None},
    )
