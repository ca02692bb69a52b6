"""What planning a step costs with a long queue: every policy at 256 running and 10,000 or 100,000 waiting sequences.

For each it prints the median and the longest of many plans, each between real steps: sequences run, end and are replaced, so
levels, buckets and indices are in motion. In a "full" pool the step takes blocks from the least urgent holders. "repeated": the
pool is roomy and prompts come up again and are found in the prefix cache; elsewhere they are looked up in vain.
"""

from __future__ import annotations

import argparse
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
from fastserve.core.planner import StepLimits
from fastserve.core.policy import make_policy
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler

RUNNING, WAITING = 256, (10_000, 100_000)
POOLS = ("roomy", "full", "repeated")
TOKEN, END = SampledToken(1), SampledToken(0)
PROMPTS = [(size,) * size for size in range(1, 513)]


class Queue:
    """A scheduler that always has as many sequences as it began with."""

    def __init__(self, policy: str, waiting: int, pool_tokens: int, *, repeated: bool) -> None:
        costs = CostModel(0.006, 0.0001, max_num_seqs=RUNNING, max_batched_tokens=2048)
        self.scheduler = Scheduler(
            StepLimits(RUNNING, 2048),
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

    def step(self) -> float:
        """One iteration; the seconds its planning took."""
        before = time.perf_counter()
        plan = self.scheduler.plan(self.now)
        seconds = time.perf_counter() - before
        started, self.now = self.now, self.now + 0.03
        tokens = [END if self._random.random() < 0.02 else TOKEN for _ in plan.sampling]
        size = len(self.scheduler)
        with self.scheduler.reserve(plan) as reservation:
            reservation.commit(tokens, started=started, ended=self.now)
        for _ in range(size - len(self.scheduler)):
            self._add()
        return seconds


def measure(policy: str, waiting: int, *, pool: str, steps: int) -> dict[str, Any]:
    queue = Queue(policy, waiting, pool_tokens=RUNNING * (200 if pool == "full" else 2048), repeated=pool == "repeated")
    for _ in range(steps // 4):
        queue.step()
    milliseconds = [queue.step() * 1e3 for _ in range(steps)]
    return {
        "policy": policy,
        "waiting": waiting,
        "pool": pool,
        "median_ms": statistics.median(milliseconds),
        "longest_ms": max(milliseconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=RESULTS / "planning.json")
    arguments = parser.parse_args()
    rows = [
        measure(policy, waiting, pool=pool, steps=arguments.steps) for waiting in WAITING for policy in POLICIES for pool in POOLS
    ]
    table = Table(title=f"Planning a step, {RUNNING} running, {processor()}")
    for column in ("waiting", "policy", "pool", "median ms", "longest ms"):
        table.add_column(column, justify="left" if column in ("policy", "pool") else "right")
    for row in rows:
        table.add_row(f"{row['waiting']:,}", row["policy"], row["pool"], f"{row['median_ms']:.2f}", f"{row['longest_ms']:.2f}")
    console = Console()
    console.print(table)
    write_json({"processor": processor(), "steps": arguments.steps, "seed": SEED, "results": rows}, arguments.output, console)


if __name__ == "__main__":
    main()
