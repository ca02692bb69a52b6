"""Distributions of lengths in tokens, as they are given on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import random

ALLOWED = "N (all alike), A-B (uniform) or exp:MEAN (exponential), whole numbers from 1"


@dataclasses.dataclass(frozen=True, slots=True)
class Lengths:
    """Uniform from ``low`` to ``high``, both included; with ``mean`` exponential instead, at least 1."""

    low: int
    high: int
    mean: int | None = None

    def draw(self, random_numbers: random.Random) -> int:
        if self.mean is not None:
            return max(1, round(random_numbers.expovariate(1 / self.mean)))
        return random_numbers.randint(self.low, self.high)

    def __str__(self) -> str:
        if self.mean is not None:
            return f"exp:{self.mean}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def lengths(text: str) -> Lengths:
    """For argparse."""
    try:
        if text.startswith("exp:"):
            parsed = Lengths(1, 1, int(text.removeprefix("exp:")))
        else:
            low, _, high = text.partition("-")
            parsed = Lengths(int(low), int(high or low))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: {ALLOWED}") from None
    if not 1 <= parsed.low <= parsed.high or (parsed.mean is not None and parsed.mean < 1):
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: {ALLOWED}")
    return parsed
