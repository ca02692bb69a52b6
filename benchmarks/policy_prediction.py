"""What the simulator makes of the arrivals that a comparison of policies measures on the real engine."""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Mapping
from typing import Any

from policy_workload import Ending

from fastserve.core.attention_windows import AttentionWindows
from fastserve.core.step_work import StepCosts
from fastserve.simulator.simulation import Machine, simulate
from fastserve.simulator.summary import row
from fastserve.simulator.workload import Job, arrive

POLICIES = ("fcfs", "skip_join_mlfq", "gittins")
COST_AWARE = "gittins"
"""Whose loading measures what steps cost."""
SWAPPING = {"preemption": "proactive"}
"""What becomes of those that the KV pool has no room for; it holds ``--max-seqs`` sequences of full length."""
LINK_BYTES_PER_S = 5e9
"""Of the simulated copies, from memory to memory."""
WARM_UP_OUTPUT_TOKENS = 80
"""So many that the first of those that fill the memory is still there when the last one's prompt is computed."""
PAUSE_S = 60.0
"""Simulated seconds between those and the first request that counts: they have ended."""


def filling_jobs(arguments: argparse.Namespace) -> list[Job]:
    """They take twice what the longest requests of the comparison can, and no more than the pool has."""
    most = arguments.max_model_len - WARM_UP_OUTPUT_TOKENS
    return [Job(min(2 * arguments.input_tokens, most), WARM_UP_OUTPUT_TOKENS)] * arguments.max_seqs


def endings_of(found: Mapping[str, Any]) -> list[Ending]:
    return [Ending(**ending) for ending in found["endings"]]


def arrivals(found: Mapping[str, Any], load: float, arguments: argparse.Namespace) -> list[Job]:
    """Poisson, the same for every policy and round."""
    jobs = [Job(ending.input_tokens, ending.output_tokens) for ending in endings_of(found)]
    costs = _machine(found, found["costs_s"], arguments).cost_model()
    return arrive(jobs, load, costs, pattern="poisson", random_=random.Random(arguments.seed))


def predict(measured: Mapping[str, Any], found: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What the simulator says of a run, with what its steps cost."""
    policy, load, first = measured["policy"], measured["load"], filling_jobs(arguments)
    later = [dataclasses.replace(job, arrival_s=job.arrival_s + PAUSE_S) for job in arrivals(found, load, arguments)]
    run = simulate([*first, *later], policy, _machine(found, measured["costs_s"], arguments), lambda: None)
    return row(policy, load, dataclasses.replace(run, served=run.served[len(first) :]))


def all_at_once_simulated_s(found: Mapping[str, Any], arguments: argparse.Namespace) -> float:
    """What the simulator makes of the run that the load is measured by."""
    jobs = [Job(**job) for job in found["asked"]]
    return simulate(jobs, COST_AWARE, _machine(found, found["costs_s"], arguments), lambda: None).seconds


def _machine(found: Mapping[str, Any], costs_s: Mapping[str, float], arguments: argparse.Namespace) -> Machine:
    return Machine(
        StepCosts(**costs_s),
        max_num_seqs=arguments.max_seqs,
        max_batched_tokens=arguments.max_batched_tokens,
        max_model_len=arguments.max_model_len,
        link_bytes_per_s=LINK_BYTES_PER_S,
        windows=AttentionWindows.of_layers(found["windows"]),
        **SWAPPING,
    )
