"""How an engine scales: tokens/s against sequences and threads, and what a token costs against the context behind it.

    python benchmarks/bench_scaling.py VERSION_FOLDER... [--sequences N ...] [--context N ...] [--rounds N]

Decoding, tokens/s: from the median iteration in which every sequence gets a token; they have 33 to 56 tokens behind them.
Context: one sequence that decodes, and one that computes 256 tokens of a prompt, ms a token, with all cores. Rounds take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from placed_prompts import draw_prompt, place
from report import RESULTS, SEED, processor, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastserve.config import EngineConfig
from fastserve.core.request import SamplingParams
from fastserve.engine.engine import Engine
from fastserve.engine.loader import load_engine
from fastserve.manifest import ModelManifest
from fastserve.profiler.command import find_version
from fastserve.profiler.measurement import Load, run
from fastserve.worker.kv_cache import bytes_per_block

GREEDY = SamplingParams(temperature=0.0)
PROMPT, OUTPUT, CHUNK, DECODES = 32, 24, 256, 8
"""Tokens of a prompt and of an answer; tokens of a chunk and of an answer behind a context."""
Points = dict[int, list[float]]


class Model:
    """An exported model and an engine of it for each number of threads."""

    def __init__(self, folder: str, threads: Sequence[int], most_sequences: int) -> None:
        directory = find_version(folder, Path())
        manifest = ModelManifest.load(directory)
        assert manifest.cache is not None
        self.name, self.vocab_size, self.longest = Path(folder).name, manifest.model.vocab_size, manifest.model.max_model_len
        tokens = most_sequences * (PROMPT + OUTPUT + 16) + 2 * self.longest
        self.engines: dict[int, Engine] = {}
        for count in threads:
            config = EngineConfig(
                num_threads=count,
                max_num_seqs=most_sequences,
                max_batched_tokens=CHUNK,
                kv_cache_bytes=tokens // 16 * bytes_per_block(manifest.cache, 16, "fp32"),
                preemption="recompute",
            )
            self.engines[count] = load_engine(directory, manifest, config, time.perf_counter)
        self.by_threads: dict[int, Points] = {count: {} for count in threads}
        """Tokens/s by threads and sequences."""
        self.decode_ms: Points = {}
        self.prefill_ms: Points = {}
        """ms for a token, by the tokens behind it."""

    def measure_sequences(self, count: int, threads: int, chance: random.Random) -> None:
        load = Load.draw([(PROMPT, OUTPUT)] * count, self.vocab_size, chance)
        steps = run(self.engines[threads], load.requests(GREEDY), time.perf_counter, lambda _: None)
        full = [sum(step.seconds.values()) for step in steps if step.only_decodes and step.answered == count]
        self.by_threads[threads].setdefault(count, []).append(count / statistics.median(full))

    def measure_context(self, context: int, chance: random.Random) -> None:
        """A multiple of the block size, so that all of it is found in the cache and nothing else is."""
        engine = self.engines[max(self.engines)]
        prompt = draw_prompt(context + CHUNK, self.vocab_size, chance)
        engine.reset_counters()
        place(engine, [prompt[:context]])
        load = Load(prompts=(prompt,), outputs=(DECODES,))
        first, *decodes = run(engine, load.requests(GREEDY), time.perf_counter, lambda _: None)
        assert first.computed == CHUNK, first
        self.prefill_ms.setdefault(context, []).append(1e3 * sum(first.seconds.values()) / CHUNK)
        self.decode_ms.setdefault(context, []).append(1e3 * statistics.median(sum(step.seconds.values()) for step in decodes))


def medians(points: Points) -> dict[int, float]:
    return {where: statistics.median(values) for where, values in sorted(points.items())}


def show(models: Sequence[Model], console: Console) -> None:
    counts = list(medians(next(iter(models[0].by_threads.values()))))
    table = Table("tokens/s, sequences:", *map(str, counts), title="Decoding")
    for model in models:
        for threads, points in model.by_threads.items():
            table.add_row(f"{model.name}, {threads} thr.", *(f"{value:.0f}" for value in medians(points).values()))
    console.print(table)
    table = Table("ms a token, tokens behind it:", *map(str, medians(models[0].decode_ms)), title="Context")
    for model in models:
        table.add_row(f"{model.name}, decode", *(f"{value:.1f}" for value in medians(model.decode_ms).values()))
        table.add_row(f"{model.name}, prefill", *(f"{value:.2f}" for value in medians(model.prefill_ms).values()))
    console.print(table)


def draw(models: Sequence[Model], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 5))
    for model in models:
        for threads, points in model.by_threads.items():
            _line(axes[0], medians(points), f"{model.name}, {threads} threads")
        _line(axes[1], medians(model.decode_ms), model.name)
        _line(axes[2], medians(model.prefill_ms), model.name)
    titles = "decoding, tokens/s", "decoding one sequence, ms a token", f"prefill in chunks of {CHUNK}, ms a token"
    for axis, title, label in zip(axes, titles, ("sequences", *["tokens behind it"] * 2), strict=True):
        axis.set(title=title, xlabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_xscale("log", base=2)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _line(axis: Any, points: Mapping[int, float], label: str) -> None:
    axis.plot(list(points), list(points.values()), marker="o", label=label)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="VERSION_FOLDER", help="or a model's folder")
    parser.add_argument("--sequences", type=int, action="append", help="1, 2, 4, ... 128 if none is given")
    parser.add_argument("--threads", type=int, action="append", help="1 and all cores if none is given")
    parser.add_argument("--context", type=int, action="append", help="multiples of 16; 16, 512, 1024, 2048, 4096, 7920 if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json", help="the picture lies beside it")
    arguments = parser.parse_args()
    counts = arguments.sequences or [1, 2, 4, 8, 16, 32, 64, 128]
    threads = arguments.threads or sorted({1, os.cpu_count() or 1})
    contexts = arguments.context or [16, 512, 1024, 2048, 4096, 7920]
    chance, console = random.Random(SEED), Console()
    models = [Model(folder, threads, max(counts)) for folder in arguments.models]
    for number in track(range(arguments.rounds), description="rounds", console=Console(stderr=True), transient=True):
        for model in models[:: -1 if number % 2 else 1]:
            for count in counts:
                for each in threads:
                    model.measure_sequences(count, each, chance)
            for context in contexts:
                model.measure_context(context, chance)
    show(models, console)
    found = {
        model.name: {
            "tokens_per_s": {each: medians(points) for each, points in model.by_threads.items()},
            "decode_ms": medians(model.decode_ms),
            "prefill_ms": medians(model.prefill_ms),
        }
        for model in models
    }
    circumstances = {"processor": processor(), "rounds": arguments.rounds, "seed": SEED, "load_average": os.getloadavg()[0]}
    write_json({**circumstances, "models": found}, arguments.output, console)
    draw(models, arguments.output.with_suffix(".png"))
    console.print(f"drawn to {arguments.output.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
