"""What planning a step costs with a long queue: every policy at 256 running and 10,000 or 100,000 waiting sequences.

For each it prints the median, the 99th percentile and the longest of many plans, each between real steps: sequences run, end and
are replaced, so levels, buckets and indices are in motion. "collector": the most that Python's garbage collector took of a plan;
how long that is depends on all objects of the process, and when it comes on what ran before. In a "full" pool the step takes
blocks from the least urgent holders. "repeated": the pool is roomy and prompts come up again and are found in the prefix cache;
elsewhere they are looked up in vain.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from pathlib import Path
from typing import Any

from report import RESULTS, SEED, processor, write_json
from rich.console import Console
from rich.table import Table

from fastserve.config import POLICIES
from fastserve.core.admission import QueueLimits
from fastserve.core.block_pool import BlockPool
from fastserve.core.cost_model import CostModel
from fastserve.core.plan import SampledToken
from fastserve.core.policy import make_policy
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts

RUNNING, WAITING = 256, (10_000, 100_000)
POOLS = ("roomy", "full", "repeated")
TOKEN, END = SampledToken(1), SampledToken(0)
PROMPTS = [(size,) * size for size in range(1, 513)]


class Collector:
    """Seconds that Python's garbage collector has taken."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: object) -> None:
        now = time.perf_counter()
        if phase == "stop":
            self.seconds += now - self._began
        self._began = now


class Queue:
    """A scheduler that always has as many sequences as it began with."""

    def __init__(self, policy: str, waiting: int, pool_tokens: int, *, repeated: bool) -> None:
        costs = CostModel(StepCosts(0.006, 0.0001, pair_s=1e-7), max_num_seqs=RUNNING, max_batched_tokens=2048)
        self.scheduler = Scheduler(
            StepLimits(RUNNING, 2048, costs.pair_tokens),
            PrefixCache(BlockPool(pool_tokens // 16, 16)),
            make_policy(policy, costs, inner="gittins"),
            max_model_len=2048,
            queue=QueueLimits(2 * waiting),
        )
        self._random = random.Random(SEED)
        self._classes = policy == "priority"
        self._repeated = repeated
        self._arrived = 0
        self.now = 0.0
        for _ in range(RUNNING + waiting):
            self._add()

    def _add(self) -> None:
        chance = self._random
        params = SamplingParams(max_tokens=chance.choice((16, 128, 1000)), stop_token_ids=frozenset((END.token_id,)))
        priority = chance.randrange(3) if self._classes else 0
        tenant = f"tenant {chance.randrange(50)}"
        salt = "" if self._repeated else str(self._arrived)
        request = Request(self._arrived, chance.choice(PROMPTS), params, priority=priority, tenant=tenant, cache_salt=salt)
        self.scheduler.add(request, self.now)
        self._arrived += 1

    def step(self) -> tuple[float, float]:
        """One iteration; the seconds its planning took, and those of the collector among them."""
        collected, before = COLLECTOR.seconds, time.perf_counter()
        plan = self.scheduler.plan(self.now)
        seconds, collected = time.perf_counter() - before, COLLECTOR.seconds - collected
        started, self.now = self.now, self.now + 0.03
        tokens = [END if self._random.random() < 0.02 else TOKEN for _ in plan.sampling]
        size = len(self.scheduler)
        with self.scheduler.reserve(plan) as reservation:
            reservation.commit(tokens, started=started, ended=self.now)
        for _ in range(size - len(self.scheduler)):
            self._add()
        return seconds, collected


COLLECTOR = Collector()


def measure(policy: str, waiting: int, *, pool: str, steps: int) -> dict[str, Any]:
    gc.collect()  # what other queues were made of
    queue = Queue(policy, waiting, pool_tokens=RUNNING * (200 if pool == "full" else 2048), repeated=pool == "repeated")
    for _ in range(steps // 4):
        queue.step()
    seconds, collected = zip(*(queue.step() for _ in range(steps)), strict=True)
    milliseconds = sorted(second * 1e3 for second in seconds)
    return {
        "policy": policy,
        "waiting": waiting,
        "pool": pool,
        "median_ms": statistics.median(milliseconds),
        "p99_ms": milliseconds[int(0.99 * steps)],
        "longest_ms": milliseconds[-1],
        "collector_ms": max(collected) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--waiting", type=int, choices=WAITING, nargs="+", default=WAITING)
    parser.add_argument("--policy", choices=POLICIES, nargs="+", default=POLICIES)
    parser.add_argument("--pool", choices=POOLS, nargs="+", default=POOLS)
    parser.add_argument("--output", type=Path, default=RESULTS / "planning.json")
    arguments = parser.parse_args()
    rows = [
        measure(policy, waiting, pool=pool, steps=arguments.steps)
        for waiting in arguments.waiting
        for policy in arguments.policy
        for pool in arguments.pool
    ]
    table = Table(title=f"Planning a step, {RUNNING} running, {processor()}")
    for column in ("waiting", "policy", "pool", "median ms", "P99 ms", "longest ms", "collector ms"):
        table.add_column(column, justify="left" if column in ("policy", "pool") else "right")
    for row in rows:
        times = (f"{row[name]:.2f}" for name in ("median_ms", "p99_ms", "longest_ms", "collector_ms"))
        table.add_row(f"{row['waiting']:,}", row["policy"], row["pool"], *times)
    console = Console()
    console.print(table)
    write_json({"processor": processor(), "steps": arguments.steps, "seed": SEED, "results": rows}, arguments.output, console)


if __name__ == "__main__":
    main()
