"""How many tokens to run at once: measured on the machine that exports, on its own graph.

More tokens in a run use the machine better, up to a point; beyond it they only make everybody wait longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fastserve.core.encoding import TokenSequence
from fastserve.manifest import ModelManifest

_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SENTENCES = (8, 43)
"""Shortest sentence, and one more than the longest, tokens; 25 on average."""
EVEN_SENTENCES = (25, 26)
"""The same for graphs that pad: the scheduler gives them sentences of about one length."""
_ROUNDS = 4
_LONGEST_RUN = 2.0
"""Seconds. A larger run is not tried: nobody should wait that long for a neighbour."""
_GOOD_ENOUGH = 0.95
"""Share of the best throughput."""

Throughputs = dict[int, float]
"""Tokens in a run -> tokens per second."""


class Runner(Protocol):
    """What is measured."""

    def run(self, sequences: Sequence[TokenSequence]) -> list[Any]: ...


def measure(
    runner: Runner,
    manifest: ModelManifest,
    *,
    lengths: tuple[int, int] = SENTENCES,
    clock: Callable[[], float] = time.perf_counter,
) -> Throughputs:
    """``lengths``: of sentences, which are shorter where the model takes less. Where the graph gives only marked rows, one is
    marked in each sentence.

    Every size has its turn in each round, so that what else the machine does meanwhile hits all of them; the best run counts.
    """
    runs = {size: _sentences(size, manifest, lengths) for size in _SIZES}
    best: dict[int, float] = {}  # size -> seconds
    for _ in range(_ROUNDS):
        for size, sentences in runs.items():
            start = clock()
            runner.run(sentences)
            seconds = clock() - start
            best[size] = min(seconds, best.get(size, seconds))
            if 2 * seconds > _LONGEST_RUN:
                runs = {tried: runs[tried] for tried in best}
                break
    return {size: size / seconds for size, seconds in best.items()}


def best_size(throughputs: Throughputs) -> int:
    """The smallest size that comes within 5 % of the best throughput."""
    best = max(throughputs.values())
    return min(size for size, throughput in throughputs.items() if throughput >= _GOOD_ENOUGH * best)


def _sentences(num_tokens: int, manifest: ModelManifest, lengths: tuple[int, int]) -> list[TokenSequence]:
    assert manifest.encoder is not None
    longest, rows = manifest.encoder.max_length, (0,) if manifest.encoder.output == "row" else ()
    generator = np.random.default_rng(0)
    sentences = []
    while num_tokens > 0:
        length = min(num_tokens, longest, int(generator.integers(*lengths)))
        token_ids = tuple(generator.integers(0, manifest.model.vocab_size, length).tolist())
        sentences.append(TokenSequence(token_ids, rows=rows))
        num_tokens -= length
    return sentences
