"""Sequences with long contexts beside one another, and what a long prompt that is computed in chunks does to them.

    python benchmarks/bench_long_context.py VERSION_FOLDER... [--context N ...] [--chunk N ...] [--set KEY=VALUE ...]

First the sequences only decode ("alone"); then a prompt of as many tokens as the model takes comes, and they go on beside it
until it has its first token ("beside"). Times are between two tokens of an answer. --chunk is max_batched_tokens. The memory of
the KV pool is written to before, as in a server that has been busy.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from placed_prompts import Prompt, draw_prompt, place
from report import RESULTS, SEED, processor, write_json
from rich.console import Console
from rich.table import Table

from fastserve.config import EngineConfig, parse_config
from fastserve.core.events import TokenEvent
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.engine import Engine
from fastserve.engine.loader import load_engine
from fastserve.manifest import ModelManifest
from fastserve.profiler.command import find_version, setting
from fastserve.worker.kv_cache import bytes_per_block

GROWTH = 1024
"""Tokens that each sequence may draw at most."""
LONG = 1_000_000
"""Id of the long prompt's request."""
SKIPPED = 4
"""First tokens of each answer, which come while the batch forms."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """``context``: tokens behind each of the sequences at the beginning; ``chunk``: tokens in an iteration."""

    sequences: int
    context: int
    chunk: int
    long_prompt: int
    alone_tokens: int


@dataclasses.dataclass(slots=True)
class Gaps:
    """Seconds between two tokens of an answer, of all answers, before and while the long prompt is computed."""

    alone: list[float]
    beside: list[float]
    first_token_s: float = 0.0
    """Of the long prompt."""


def run(engine: Engine, prompts: Sequence[Prompt], long_prompt: Prompt, alone_tokens: int) -> Gaps:
    """Raises AssertionError when a request fails."""
    gaps, clock = Gaps([], []), time.perf_counter
    endless = SamplingParams(max_tokens=engine.scheduler.max_model_len, temperature=0.0)
    for number, prompt in enumerate(prompts):
        engine.submit(Request(number, prompt, endless))
    before: dict[int, float] = {}
    tokens, sent = 0, 0.0
    while not gaps.first_token_s:
        events = engine.step()
        now = clock()
        for event in events:
            assert isinstance(event, TokenEvent), event
            if event.request_id == LONG:
                gaps.first_token_s = now - sent
                continue
            if tokens >= SKIPPED:
                (gaps.beside if sent else gaps.alone).append(now - before[event.request_id])
            before[event.request_id] = now
        tokens += 1
        if tokens == SKIPPED + alone_tokens:
            engine.submit(Request(LONG, long_prompt, SamplingParams(max_tokens=1, temperature=0.0)))
            sent = clock()
    return gaps


class Bench:
    """A model and its runs. ``settings``: those of config.pbtxt that are not the defaults."""

    def __init__(self, model: str, settings: Mapping[str, str]) -> None:
        self.name = model
        self._directory: Path = find_version(model, Path())
        self._manifest = ModelManifest.load(self._directory)
        self._settings = dict(settings)

    def measure(self, case: Case) -> Gaps:
        config = parse_config(EngineConfig, self._settings | self._sizes(case))
        engine = load_engine(self._directory, self._manifest, config, time.perf_counter)
        chance = random.Random(SEED)
        vocab_size = self._manifest.model.vocab_size
        prompts = [draw_prompt(case.context, vocab_size, chance) for _ in range(case.sequences)]
        try:
            for array in engine.kv_cache.keys + engine.kv_cache.values:
                array[...] = 0  # whoever writes to a huge page for the first time would wait for it
            place(engine, prompts)
            return run(engine, prompts, draw_prompt(case.long_prompt, vocab_size, chance), case.alone_tokens)
        finally:
            engine.close()

    def longest_prompt(self) -> int:
        """One token of output fits after it."""
        return self._manifest.model.max_model_len - 1

    def _sizes(self, case: Case) -> dict[str, str]:
        """Settings of a pool in which everybody fits."""
        assert self._manifest.cache is not None
        longest = self._manifest.model.max_model_len
        tokens = case.sequences * min(case.context + GROWTH, longest) + longest
        size = bytes_per_block(self._manifest.cache, 16, self._settings.get("kv_cache_dtype", "fp32"))
        return {
            "max_num_seqs": str(case.sequences + 1),
            "max_batched_tokens": str(case.chunk),
            "kv_cache_bytes": str(tokens // 16 * size),
            "preemption": "recompute",
        }


def figures(gaps: Gaps, case: Case) -> dict[str, float]:
    """Milliseconds but for what says otherwise."""
    found: dict[str, float] = {}
    for name, values in (("alone", gaps.alone), ("beside", gaps.beside)):
        median, p99 = np.quantile(values, (0.5, 0.99))
        found |= {f"{name}_median_ms": 1e3 * median, f"{name}_p99_ms": 1e3 * p99, f"{name}_p99_by_median": p99 / median}
    found["alone_tokens_per_s"] = case.sequences / found["alone_median_ms"] * 1e3
    found["first_token_s"] = gaps.first_token_s
    return found


COLUMNS = (
    ("alone, ms", "alone_median_ms", ".1f"),
    ("P99", "alone_p99_ms", ".1f"),
    ("tok/s", "alone_tokens_per_s", ".0f"),
    ("beside, ms", "beside_median_ms", ".1f"),
    ("P99", "beside_p99_ms", ".1f"),
    ("P99/med.", "beside_p99_by_median", ".2f"),
    ("TTFT, s", "first_token_s", ".1f"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="VERSION_FOLDER", help="or a model's folder")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--context", type=int, action="append", help="4096 if none is given")
    parser.add_argument("--chunk", type=int, action="append", help="256 if none is given")
    parser.add_argument("--alone-tokens", type=int, default=32, help="of each answer, before the long prompt comes")
    parser.add_argument("--set", action="append", default=[], type=setting, metavar="KEY=VALUE", help="as in config.pbtxt")
    parser.add_argument("--output", type=Path, default=RESULTS / "long_context.json")
    arguments = parser.parse_args()
    console, rows = Console(), []
    table = Table("model", "context", "chunk", *(heading for heading, *_ in COLUMNS))
    cases = [(context, chunk) for context in arguments.context or (4096,) for chunk in arguments.chunk or (256,)]
    for model, (context, chunk) in itertools.product(arguments.models, cases):
        bench = Bench(model, dict(arguments.set))
        case = Case(arguments.sequences, context, chunk, bench.longest_prompt(), arguments.alone_tokens)
        with console.status(f"{model}: {case}"):
            found = figures(bench.measure(case), case)
        rows.append({"model": model, **dataclasses.asdict(case), **found})
        table.add_row(Path(model).name, str(context), str(chunk), *(format(found[key], how) for _, key, how in COLUMNS))
    console.print(f"ms between two tokens of {arguments.sequences} answers, alone and beside the long prompt")
    console.print(table)
    circumstances = {"processor": processor(), "set": dict(arguments.set), "seed": SEED}
    write_json({**circumstances, "rows": rows}, arguments.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
