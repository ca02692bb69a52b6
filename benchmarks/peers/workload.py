"""The requests that every engine gets: the same token ids, the same lengths, at the same times. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from pathlib import Path

SEED = 20
LONGEST_PROMPT, LONGEST_OUTPUT = 480, 480
_PROMPT_SPREAD, _OUTPUT_SPREAD = 0.7, 1.0
"""Standard deviations of the logarithms of lengths: outputs are heavy-tailed."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One request. ``at``: seconds after the beginning; ``output_tokens``: exactly so many, whatever the model says."""

    at: float
    prompt: list[int]
    output_tokens: int


def draw(
    count: int, vocab_size: int, *, prompt_mean: float = 120, output_mean: float = 80, rate: float | None = None
) -> list[Item]:
    """``rate``: arrivals a second on average (Poisson); None: all at once. Lengths and prompts do not depend on it."""
    chance, arrivals = random.Random(SEED), random.Random(SEED + 1)
    items, at = [], 0.0
    for _ in range(count):
        prompt = _length(chance, prompt_mean, _PROMPT_SPREAD, LONGEST_PROMPT)
        output = _length(chance, output_mean, _OUTPUT_SPREAD, LONGEST_OUTPUT)
        # The first ids are special tokens, which servers treat in their own ways.
        items.append(Item(at, [chance.randrange(100, vocab_size) for _ in range(prompt)], output))
        at += 0.0 if rate is None else arrivals.expovariate(rate)
    return items


def one_user(vocab_size: int, prompt_tokens: int = 64, output_tokens: int = 256) -> list[Item]:
    """One request, alone: what a single user waits for."""
    chance = random.Random(SEED)
    return [Item(0.0, [chance.randrange(100, vocab_size) for _ in range(prompt_tokens)], output_tokens)]


def _length(chance: random.Random, mean: float, spread: float, longest: int) -> int:
    """Log-normal with this mean, cut at both ends."""
    return min(max(4, round(mean * chance.lognormvariate(-spread * spread / 2, spread))), longest)


def describe(items: list[Item]) -> str:
    prompts, outputs = [len(item.prompt) for item in items], [item.output_tokens for item in items]
    rate = len(items) / items[-1].at if items[-1].at else None
    when = "at once" if rate is None else f"{rate:.2f} a second"
    return (
        f"{len(items)} requests {when}, {sum(prompts)} prompt tokens (median {statistics.median(prompts):.0f}), "
        f"{sum(outputs)} output tokens (median {statistics.median(outputs):.0f}, longest {max(outputs)})"
    )


def save(items: list[Item], file: Path) -> None:
    file.write_text(json.dumps([dataclasses.asdict(item) for item in items]) + "\n", encoding="utf-8")


def load(file: Path) -> list[Item]:
    return [Item(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))]
