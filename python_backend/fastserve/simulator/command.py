"""``fastserve bench simulate``: what each policy would do to waiting times on a trace of requests."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastserve.argument_types import at_least, check_output_file
from fastserve.config import POLICIES, PREEMPTION
from fastserve.core.step_work import StepCosts
from fastserve.errors import FastServeError, ToolError
from fastserve.simulator import summary, workload
from fastserve.simulator.simulation import KV_BYTES_PER_TOKEN, SRPT_ORACLE, Machine, simulate
from fastserve.tools import console

SIMULATED = (*(name for name in POLICIES if name not in ("auto", "priority")), SRPT_ORACLE)
"""``auto`` is one of the others, and a trace has no priorities that classes of them would show."""

_EPILOG = f"""The trace is Azure's CSV (TIMESTAMP,ContextTokens,GeneratedTokens), JSON lines
({{"prompt_tokens": 9, "output_tokens": 9}}, or AIBrix's ShareGPT format), or the word {workload.SYNTHETIC}.
{SRPT_ORACLE} knows how long each answer will be: the best there could be.
The load is the work that arrives, prompt tokens * C1 + output tokens * (C1 + C0 / max-seqs), over what the machine can do.

examples:
  fastserve bench simulate --trace {workload.SYNTHETIC} --policy fcfs --policy gittins --load 0.7 --load 0.9
  fastserve bench simulate --trace trace.csv --policy fcfs --policy {SRPT_ORACLE} --load 0.9 --cost 36,0.1 --json out.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--trace", required=True, metavar="FILE", help=f"lengths and times of requests, or {workload.SYNTHETIC}")
    parser.add_argument("--policy", action="append", required=True, choices=SIMULATED, metavar="P", help=", ".join(SIMULATED))
    parser.add_argument("--load", action="append", required=True, type=_load, metavar="L", help="1: as much as can be done")
    parser.add_argument(
        "--cost", type=_cost, default=(6.0, 1.5), metavar="C0,C1", help="ms of a step, and of each token in it (6,1.5: a CPU)"
    )
    parser.add_argument("--max-seqs", type=at_least(1), default=16, metavar="N", help="sequences in a step (16)")
    parser.add_argument("--max-batched-tokens", type=at_least(1), default=256, metavar="N", help="tokens in a step (256)")
    parser.add_argument(
        "--clip", type=at_least(2), default=2048, metavar="N", help="longest prompt + output; longer are cut (2048)"
    )
    parser.add_argument("--kv-tokens", type=at_least(1), metavar="N", help="tokens the KV pool holds (max-seqs * clip)")
    parser.add_argument(
        "--swap",
        choices=PREEMPTION,
        default=PREEMPTION[0],
        help=f"what becomes of sequences that the KV pool has no room for ({PREEMPTION[0]})",
    )
    parser.add_argument(
        "--link-gb-per-s", type=_positive, default=10.0, metavar="GB", help="between the pool and the tier below it (10)"
    )
    parser.add_argument(
        "--kv-bytes-per-token",
        type=at_least(1),
        default=KV_BYTES_PER_TOKEN,
        metavar="N",
        help=f"keys and values of a token in all layers ({KV_BYTES_PER_TOKEN}: SmolLM2-135M in fp32)",
    )
    parser.add_argument(
        "--requests", type=at_least(1), metavar="N", help="the first N, drawn again at random beyond the last (all)"
    )
    parser.add_argument("--arrivals", choices=workload.ARRIVALS, default="poisson", help="times of arrival (poisson)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a row for each policy and load here")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw latencies against load here")


def run(arguments: argparse.Namespace) -> int:
    """0. Raises :class:`ToolError` for what cannot be read, simulated or written."""
    from fastserve.simulator import display

    check_output_file(arguments.json)
    check_output_file(arguments.plot)
    if arguments.plot is not None:
        display.require_matplotlib()
    machine = _machine(arguments)
    jobs = workload.draw(arguments.trace, arguments.clip, arguments.requests, random.Random(arguments.seed))
    rows = _simulate_all(arguments, jobs, machine)
    out = console.stdout()
    out.print(f"{len(jobs)} requests of {arguments.trace}, {_lengths(jobs)} (clipped to {arguments.clip} tokens together)")
    display.show(rows, out)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        display.plot(rows, arguments.plot)
    return 0


def _machine(arguments: argparse.Namespace) -> Machine:
    if arguments.max_batched_tokens < arguments.max_seqs:
        raise ToolError(f"--max-batched-tokens: got {arguments.max_batched_tokens}, allowed: at least --max-seqs")
    if arguments.kv_tokens is not None and arguments.kv_tokens < arguments.clip:
        raise ToolError(f"--kv-tokens: got {arguments.kv_tokens}, allowed: at least --clip ({arguments.clip})")
    base_ms, token_ms = arguments.cost
    return Machine(
        StepCosts(base_ms / 1e3, token_ms / 1e3),
        max_num_seqs=arguments.max_seqs,
        max_batched_tokens=arguments.max_batched_tokens,
        max_model_len=arguments.clip + 1,  # so that the longest ends by itself
        kv_tokens=arguments.kv_tokens or 0,
        preemption=arguments.swap,
        link_bytes_per_s=arguments.link_gb_per_s * 1e9,
        kv_bytes_per_token=arguments.kv_bytes_per_token,
    )


def _simulate_all(arguments: argparse.Namespace, jobs: Sequence[workload.Job], machine: Machine) -> list[dict[str, Any]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    rows = []
    with Progress(*columns, console=console.stderr(), transient=True) as progress:
        for load in dict.fromkeys(arguments.load):
            arrivals = random.Random(arguments.seed)
            arriving = workload.arrive(jobs, load, machine.cost_model(), pattern=arguments.arrivals, random_=arrivals)
            for policy in dict.fromkeys(arguments.policy):
                bar = progress.add_task(f"{policy} at {load:g}", total=len(jobs))
                try:
                    done = simulate(arriving, policy, machine, lambda bar=bar: progress.advance(bar))  # type: ignore[misc]
                except FastServeError as error:
                    raise ToolError(f"{policy} at load {load:g}: {error}") from None
                rows.append(summary.row(policy, load, done, swap=machine.preemption))
    return rows


def _lengths(jobs: Sequence[workload.Job]) -> str:
    prompt = sum(job.prompt_tokens for job in jobs) / len(jobs)
    output = sum(job.output_tokens for job in jobs) / len(jobs)
    return f"on average {prompt:.0f} prompt and {output:.0f} output tokens"


def _load(text: str) -> float:
    return _real(text, "a number above 0, at most 10", 10.0)


def _positive(text: str) -> float:
    return _real(text, "a number above 0", math.inf)


def _cost(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: two numbers of milliseconds, C0,C1, such as 36,0.1")
    allowed = "two numbers of milliseconds above 0, such as 36,0.1"
    return _real(parts[0], allowed, math.inf), _real(parts[1], allowed, math.inf)


def _real(text: str, allowed: str, high: float) -> float:
    """A finite number above 0, at most ``high``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 < value <= high):
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: {allowed}")
    return value
