"""What preemption costs when the KV pool is too small: proactive swapping, reactive swapping and computing again, simulated.

Demand is the most that requests ever hold of a pool with room for all. The pool is a fourth and a seventh of it. Two machines:
one where each token costs (a CPU; the link is memory) and one where the step does (a GPU; PCIe), as in FastServe's paper.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from pathlib import Path
from typing import Any

from report import RESULTS, SEED, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastserve.config import PREEMPTION
from fastserve.core.step_work import StepCosts
from fastserve.simulator import workload
from fastserve.simulator.simulation import Machine, Run, simulate
from fastserve.simulator.summary import row

CLIP = 2048
MACHINES = {
    "each token costs (6 ms + 1.5 ms a token, 45 KiB of KV a token, 5 GB/s)": Machine(
        StepCosts(0.006, 0.0015), max_model_len=CLIP + 1, kv_bytes_per_token=46_080, link_bytes_per_s=5e9
    ),
    "each step costs (36 ms + 0.1 ms a token, 800 KiB of KV a token, 16 GB/s)": Machine(
        StepCosts(0.036, 0.0001), max_model_len=CLIP + 1, kv_bytes_per_token=819_200, link_bytes_per_s=16e9
    ),
}
POLICIES = ("skip_join_mlfq", "gittins", "fcfs")
SHARES = (4, 7)
ROOMY = 10_000_000
"""KV tokens for everybody."""


def requests(arguments: argparse.Namespace, machine: Machine) -> list[workload.Job]:
    jobs = workload.draw(arguments.trace, CLIP, arguments.requests, random.Random(SEED))
    return workload.arrive(jobs, arguments.load, machine.cost_model(), pattern="poisson", random_=random.Random(SEED))


def compare(jobs: list[workload.Job], policy: str, machine: Machine, load: float) -> list[dict[str, Any]]:
    """A row for a pool with room for all, and for each smaller pool and kind of preemption."""

    def serve(**changes: Any) -> Run:
        return simulate(jobs, policy, dataclasses.replace(machine, **changes), lambda: None)

    fits = serve(kv_tokens=ROOMY)
    found = [row(policy, load, fits, swap="") | {"pool": "all", "seconds": fits.seconds}]
    for share in SHARES:
        for preemption in PREEMPTION:
            done = serve(kv_tokens=max(found[0]["peak_kv_tokens"] // share, CLIP), preemption=preemption)
            found.append(row(policy, load, done, swap=preemption) | {"pool": f"1/{share}", "seconds": done.seconds})
    return found


def show(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    table = Table(title=title)
    columns = ("policy", "pool", "preemption", "mean JCT s", "P95", "s/token", "P95", "proactive = 1", "GB", "waits %", "again")
    for name in columns:
        table.add_column(name, justify="left" if name in columns[:3] else "right")
    for found in rows:
        best = next((one for one in rows if one["swap"] == PREEMPTION[0] and _same(one, found)), found)
        latency, jct = found["normalized_latency_s"], found["jct_s"]
        table.add_row(
            found["policy"],
            found["pool"],
            found["swap"],
            *(f"{jct[name]:.2f}" for name in ("mean", "p95")),
            *(f"{latency[name]:.3f}" for name in ("mean", "p95")),
            f"{jct['mean'] / best['jct_s']['mean']:.2f}",
            f"{found['swapped_bytes'] / 1e9:.0f}",
            f"{100 * found['swap_wait_s'] / found['seconds']:.1f}",
            str(found["preemptions"]),
        )
    console.print(table)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one["policy"], one["pool"]) == (other["policy"], other["pool"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default=workload.SYNTHETIC, help=f"a trace of requests, or {workload.SYNTHETIC} (default)")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--load", type=float, default=1.2)
    parser.add_argument("--output", type=Path, default=RESULTS / "swapping.json")
    arguments = parser.parse_args()
    console, progress = Console(), Console(stderr=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, machine in MACHINES.items():
        jobs = requests(arguments, machine)
        rows = []
        for policy in track(POLICIES, name, console=progress, transient=True):
            rows += compare(jobs, policy, machine, arguments.load)
        results[name] = rows
        show(rows, f"{name}: {len(jobs)} requests, load {arguments.load:g}", console)
    settings = {"trace": Path(arguments.trace).name, "requests": arguments.requests, "load": arguments.load, "seed": SEED}
    write_json({**settings, "results": results}, arguments.output, console)


if __name__ == "__main__":
    main()
