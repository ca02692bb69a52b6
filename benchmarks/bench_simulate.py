"""Every policy on traces of requests, simulated, as ratios to first come, first served and to an oracle: ``make bench-simulate``.

The real scheduler runs under two models of what steps cost: "compute" (a CPU: 6 ms a step and 1.5 ms a token) and "memory" (the
regime of the FastServe paper: 36 ms and 0.1 ms). Prompts and answers are cut to 2,048 tokens together. The KV pool holds what 16
full sequences need; whoever has to make way is swapped out and in proactively, to and from a tier that has room for all. MLFQ,
which makes most of them make way, is also simulated with their tokens computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from policy_variants import VARIANTS, register
from report import RESULTS, processor, write_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from simulation_tables import COMPUTED_AGAIN, POLICIES, show

from fastserve.core.step_work import StepCosts
from fastserve.simulator import summary, workload
from fastserve.simulator.simulation import Machine, simulate

CLIP = 2048
REGIMES = {
    "compute": Machine(StepCosts(6e-3, 1.5e-3), link_bytes_per_s=5e9),
    "memory": Machine(StepCosts(36e-3, 0.1e-3), link_bytes_per_s=16e9, kv_bytes_per_token=819_200),
}
"""Seconds of a step, and of each token in it. Between pool and tier: memory to memory, and PCIe with a larger model's KV."""
LOADS = (0.5, 0.7, 0.9, 1.0, 1.2)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One simulation."""

    trace: str
    regime: str
    load: float
    policy: str


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The busiest, which take longest, first."""
    return [
        Case(trace, regime, load, policy)
        for load in sorted(arguments.load, reverse=True)
        for trace in arguments.trace
        for regime in arguments.regime
        for policy in arguments.policy
    ]


def run(case: Case, jobs: Sequence[workload.Job], arguments: argparse.Namespace) -> dict[str, Any]:
    register()
    policy = case.policy.removesuffix(COMPUTED_AGAIN)
    preemption = "proactive" if policy == case.policy else "recompute"
    machine = dataclasses.replace(REGIMES[case.regime], max_model_len=CLIP + 1, preemption=preemption)
    arriving = workload.arrive(
        jobs, case.load, machine.cost_model(), pattern=arguments.arrivals, random_=random.Random(arguments.seed)
    )
    started = time.perf_counter()
    done = simulate(arriving, policy, machine, lambda: None)
    row = summary.row(case.policy, case.load, done, swap=preemption)
    name = Path(case.trace).stem
    return {"trace": name, "regime": case.regime, **row, "simulated_in_s": time.perf_counter() - started}


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each case, in the order of the arguments."""
    jobs = {
        trace: workload.draw(trace, CLIP, arguments.requests, random.Random(arguments.seed), skip=arguments.skip)
        for trace in arguments.trace
    }
    columns = TextColumn("simulations"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    found: dict[Case, dict[str, Any]] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress, ProcessPoolExecutor(arguments.processes) as pool:
        bar = progress.add_task("", total=len(cases(arguments)))
        running = {pool.submit(run, case, jobs[case.trace], arguments): case for case in cases(arguments)}
        for done in as_completed(running):
            found[running[done]] = done.result()
            progress.advance(bar)
    return list(found.values())


def read_rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Of runs before, which may have been slices of one."""
    return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["results"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", action="append", help=f"a file as for fastserve bench simulate, or {workload.SYNTHETIC}")
    parser.add_argument(
        "--policy", action="append", choices=(*POLICIES, *VARIANTS), metavar="P", help=", ".join((*POLICIES, *VARIANTS))
    )
    parser.add_argument("--regime", action="append", choices=tuple(REGIMES))
    parser.add_argument("--load", action="append", type=float)
    parser.add_argument("--requests", type=int, default=2000, help="of each trace (2000)")
    parser.add_argument("--skip", type=int, default=0, help="requests of a trace to leave out before those (0)")
    parser.add_argument("--arrivals", choices=workload.ARRIVALS, default="poisson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="simulate nothing: the tables of results in files")
    parser.add_argument("--output", type=Path, default=RESULTS / "simulate.json")
    arguments = parser.parse_args()
    arguments.trace = arguments.trace or [workload.SYNTHETIC]
    arguments.policy = arguments.policy or list(POLICIES)
    arguments.regime = arguments.regime or list(REGIMES)
    arguments.load = arguments.load or list(LOADS)
    console = Console()
    if arguments.show:
        show(read_rows(arguments.show), console)
        return
    rows = run_all(arguments)
    circumstances = {"processor": processor(), "requests": arguments.requests, "arrivals": arguments.arrivals}
    write_json({**circumstances, "seed": arguments.seed, "results": rows}, arguments.output, console)
    show(rows, console)


if __name__ == "__main__":
    main()
