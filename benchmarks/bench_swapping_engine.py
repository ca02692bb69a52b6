"""What preemption costs when the KV pool is too small: the same comparison as bench_swapping.py, on the real engine in process.

Requests arrive at random under skip-join MLFQ. The demand is measured with room for all; then the pool is a fourth and a seventh
of it, and what it has no room for goes to memory, to a file, or is computed again. Rounds alternate; figures are medians. On a
CPU the tier in memory is a copy from memory to memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import RESULTS, SEED, processor, write_json
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastserve.config import EngineConfig
from fastserve.core.events import TokenEvent
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.engine import Engine
from fastserve.engine.loader import load_engine
from fastserve.manifest import ModelManifest
from fastserve.simulator import workload
from fastserve.worker.kv_cache import bytes_per_block

CLIP = 320
"""Longest prompt and answer together, tokens."""
GIGABYTE = 1 << 30
MODES: dict[str, dict[str, Any]] = {
    "proactive, memory": {"preemption": "proactive", "swap_space_bytes": GIGABYTE},
    "reactive, memory": {"preemption": "reactive", "swap_space_bytes": GIGABYTE},
    "proactive, file": {"preemption": "proactive", "swap_space_bytes": 1, "swap_file_bytes": GIGABYTE},
    "reactive, file": {"preemption": "reactive", "swap_space_bytes": 1, "swap_file_bytes": GIGABYTE},
    "computed again": {"preemption": "recompute"},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """A run: seconds from arrival to the last token of each request, in order, and what the engine counted."""

    jct_s: tuple[float, ...]
    token_ids: tuple[tuple[int, ...], ...]
    seconds: float
    peak_blocks: int
    swapped_bytes: int
    waits: int
    computed_again: int


def serve(engine: Engine, jobs: Sequence[workload.Job], requests: Sequence[Request]) -> Served:
    """Requests come in at their times; nothing else runs."""
    clock, start = time.perf_counter, time.perf_counter()
    ended: dict[int, float] = {}
    tokens: dict[int, list[int]] = {request.request_id: [] for request in requests}
    arrived = peak = 0
    while len(ended) < len(requests):
        now = clock() - start
        while arrived < len(requests) and jobs[arrived].arrival_s <= now:
            engine.submit(requests[arrived])
            arrived += 1
        if not engine.has_work:
            time.sleep(jobs[arrived].arrival_s - now)
            continue
        for event in engine.step():
            assert isinstance(event, TokenEvent), event
            tokens[event.request_id].append(event.token_id)
            if event.finish_reason is not None:
                ended[event.request_id] = clock() - start
        peak = max(peak, engine.scheduler.pool.num_used)
    stats = engine.stats()
    return Served(
        tuple(ended[number] - job.arrival_s for number, job in enumerate(jobs)),
        tuple(tuple(tokens[number]) for number in range(len(jobs))),
        clock() - start,
        peak,
        stats.swap_out_bytes + stats.swap_in_bytes,
        stats.swap_waits,
        stats.preemptions,
    )


def draw_jobs(arguments: argparse.Namespace) -> list[workload.Job]:
    chance = random.Random(SEED)
    jobs = workload.draw(arguments.trace, CLIP, arguments.requests, chance)
    now, arriving = 0.0, []
    for job in jobs:
        arriving.append(dataclasses.replace(job, arrival_s=now))
        now += chance.expovariate(arguments.rate)
    return arriving


class Bench:
    """The model, the requests and the runs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._directory = arguments.model
        self._manifest = ModelManifest.load(arguments.model)
        self._block_bytes = bytes_per_block(self._manifest.cache, 16, "fp32") if self._manifest.cache else 0
        self._jobs = draw_jobs(arguments)
        chance = random.Random(SEED)
        vocabulary = self._manifest.model.vocab_size
        self._requests = [
            Request(
                number,
                tuple(chance.randrange(vocabulary) for _ in range(job.prompt_tokens)),
                SamplingParams(max_tokens=job.output_tokens, temperature=0.0),
            )
            for number, job in enumerate(self._jobs)
        ]

    def run(self, settings: Mapping[str, Any]) -> Served:
        values = {"policy": "skip_join_mlfq", "max_num_seqs": 16, "max_model_len": CLIP + 1} | dict(settings)
        engine = load_engine(self._directory, self._manifest, EngineConfig(**values), time.perf_counter)
        try:
            return serve(engine, self._jobs, self._requests)
        finally:
            engine.close()

    def compare(self, share: int, demand: int, rounds: int, progress: Progress) -> dict[str, list[Served]]:
        """The runs of each mode with a pool of one part in ``share`` of the demand, in alternation."""
        pool = {"kv_cache_bytes": max(demand // share, -(-CLIP // 16) + 1) * self._block_bytes}
        found: dict[str, list[Served]] = {name: [] for name in MODES}
        bar = progress.add_task(f"1/{share} of the demand", total=rounds * len(MODES))
        for number in range(rounds):
            for name in list(MODES)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(self.run(pool | MODES[name]))
                progress.advance(bar)
        return found


def figures(runs: Sequence[Served]) -> dict[str, float]:
    """Medians over the runs."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    return {
        "mean_jct_s": median([statistics.fmean(run.jct_s) for run in runs]),
        "p95_jct_s": median([sorted(run.jct_s)[round(0.95 * len(run.jct_s)) - 1] for run in runs]),
        "seconds": median([run.seconds for run in runs]),
        "swapped_mb": median([run.swapped_bytes / 1e6 for run in runs]),
        "waits": median([run.waits for run in runs]),
        "computed_again": median([run.computed_again for run in runs]),
    }


def show(rows: Mapping[str, Mapping[str, float]], title: str, console: Console) -> None:
    table = Table(title=title)
    table.add_column("preemption")
    for name in ("mean JCT s", "P95", "proactive = 1", "swapped MB", "waits", "computed again"):
        table.add_column(name, justify="right")
    best = rows["proactive, memory"]["mean_jct_s"]
    for name, row in rows.items():
        cells = [f"{row[key]:.2f}" for key in ("mean_jct_s", "p95_jct_s")] + [f"{row['mean_jct_s'] / best:.2f}"]
        table.add_row(name, *cells, *(f"{row[key]:.0f}" for key in ("swapped_mb", "waits", "computed_again")))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="version folder of an exported language model")
    parser.add_argument("--trace", default=workload.SYNTHETIC, help=f"a trace of requests, or {workload.SYNTHETIC} (default)")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--share", type=int, action="append", help="the pool is one part in so many of the demand (4 and 7)")
    parser.add_argument("--output", type=Path, default=RESULTS / "swapping_engine.json")
    arguments = parser.parse_args()
    console, bench = Console(), Bench(arguments)
    results: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        fits = bench.run({"preemption": "recompute"})
        for share in arguments.share or (4, 7):
            runs = bench.compare(share, fits.peak_blocks, arguments.rounds, progress)
            same = all(run.token_ids == fits.token_ids for found in runs.values() for run in found)
            rows = {"room for all": figures([fits])} | {name: figures(found) for name, found in runs.items()}
            title = f"1/{share} of {fits.peak_blocks} blocks, tokens {'the same' if same else 'NOT THE SAME'} in all runs"
            show(rows, title, console)
            results[f"1/{share}"] = {"tokens_are_the_same": same, "rows": rows}
    settings = {"requests": arguments.requests, "rate": arguments.rate, "rounds": arguments.rounds, "seed": SEED}
    write_json({"processor": processor(), **settings, "results": results}, arguments.output, console)


if __name__ == "__main__":
    main()
