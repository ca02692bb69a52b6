"""Many random schedules over every policy: ``make soak-scheduler``. Prints how many of each kind of event they saw.

A violation ends the run with the policy and the seed; ``--policy P --first SEED --schedules 1`` runs that one again.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.random_schedules import EVENT_KINDS, NUM_REQUESTS, SCHEDULED_POLICIES, run_schedules

BATCH = 10
"""Schedules that a process runs at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=10_000, help="divided among the policies (10000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--policy", action="append", choices=SCHEDULED_POLICIES, help="only this one; may be repeated")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    policies = arguments.policy or list(SCHEDULED_POLICIES)
    count = -(-arguments.schedules // len(policies))
    seen = soak(policies, range(arguments.first, arguments.first + count), arguments.processes)
    show(seen, count)


def soak(policies: list[str], seeds: range, processes: int) -> dict[str, Counter[str]]:
    """What was seen under each policy. Raises the first AssertionError of a schedule."""
    seen: dict[str, Counter[str]] = {policy: Counter() for policy in policies}
    columns = TextColumn("schedules"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress, ProcessPoolExecutor(processes) as pool:
        bar = progress.add_task("", total=len(policies) * len(seeds))
        running: dict[Future[Counter[str]], tuple[str, int]] = {}
        for start in range(0, len(seeds), BATCH):
            for policy in policies:
                part = seeds[start : start + BATCH]
                running[pool.submit(run_schedules, policy, part)] = policy, len(part)
        for done in as_completed(running):
            policy, size = running[done]
            try:
                seen[policy] += done.result()
            except AssertionError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            progress.advance(bar, size)
    return seen


def show(seen: dict[str, Counter[str]], count: int) -> None:
    table = Table(title=f"{count:,} schedules of {NUM_REQUESTS} requests under each policy, no violation")
    table.add_column("seen")
    for policy in seen:
        table.add_column(policy, justify="right")
    kinds = (*EVENT_KINDS, *sorted(set().union(*seen.values()) - set(EVENT_KINDS)))
    for kind in kinds:
        table.add_row(kind, *(f"{found[kind]:,}" for found in seen.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
