"""The loop of a server without the server: the real scheduler plans and commits, a cost model says how long each step takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from fastserve.core.admission import QueueLimits
from fastserve.core.attention_windows import EVERYTHING, AttentionWindows
from fastserve.core.block_pool import BlockPool
from fastserve.core.cost_model import CostModel
from fastserve.core.events import TokenEvent
from fastserve.core.plan import SampledToken, StepPlan
from fastserve.core.policy import Policy, make_policy
from fastserve.core.policy.srpt_oracle import ShortestRemainingFirst
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts
from fastserve.core.swapper import Swapper, Tier
from fastserve.core.transfers import Transfers
from fastserve.simulator.link import Link, SimulatedClock
from fastserve.simulator.workload import Job

SRPT_ORACLE = "srpt_oracle"
BLOCK_SIZE = 16
KV_BYTES_PER_TOKEN = 46_080
"""Of SmolLM2-135M in fp32: 30 layers with 3 heads of 64."""
_END, _ON = SampledToken(0), SampledToken(1)


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What is simulated: costs of a step, its budgets, the model's and the KV pool's size in tokens."""

    costs: StepCosts
    max_num_seqs: int = 16
    max_batched_tokens: int = 256
    max_model_len: int = 2048
    kv_tokens: int = 0
    """0: as a server does, what ``max_num_seqs`` sequences of full length need."""
    preemption: str = "recompute"
    """What becomes of sequences that the pool has no room for, see ``EngineConfig``; the tier below has room for all."""
    link_bytes_per_s: float = 10e9
    """Between the pool and that tier."""
    kv_bytes_per_token: int = KV_BYTES_PER_TOKEN
    """Keys and values of all layers."""
    windows: AttentionWindows = EVERYTHING
    """Of the layers."""

    def cost_model(self) -> CostModel:
        return CostModel(
            self.costs,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            windows=self.windows,
        )

    def limits(self) -> StepLimits:
        return StepLimits(self.max_num_seqs, self.max_batched_tokens, self.cost_model().pair_tokens, self.windows)


@dataclasses.dataclass(slots=True)
class Served:
    """What became of a job: seconds since the simulation began."""

    job: Job
    first_token_s: float = 0.0
    finished_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.job.arrival_s

    @property
    def jct_s(self) -> float:
        return self.finished_s - self.job.arrival_s

    @property
    def normalized_latency_s(self) -> float:
        """Seconds for each output token."""
        return self.jct_s / self.job.output_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A simulation's result."""

    served: tuple[Served, ...]
    seconds: float
    steps: int
    preemptions: int
    """How often a sequence lost its blocks and was computed again."""
    swapped_bytes: int = 0
    """Copied out of the pool and back."""
    swap_wait_s: float = 0.0
    """Seconds that no step ran because a copy had to end first."""
    peak_blocks: int = 0
    """Most blocks of the pool in use at once."""


def simulate(jobs: Sequence[Job], policy: str, machine: Machine, on_finished: Callable[[], None]) -> Run:
    """Serve ``jobs``, in order of arrival, to the end. ``on_finished`` is called for each that ends."""
    return _Simulation(jobs, policy, machine, on_finished).run()


class _Simulation:
    def __init__(self, jobs: Sequence[Job], policy: str, machine: Machine, on_finished: Callable[[], None]) -> None:
        self._served = [Served(job) for job in jobs]
        self._machine = machine
        self._on_finished = on_finished
        pool_tokens = machine.kv_tokens or machine.max_num_seqs * machine.max_model_len
        pool = BlockPool(-(-pool_tokens // BLOCK_SIZE), BLOCK_SIZE)
        slots = sum(pool.blocks_for(job.prompt_tokens + job.output_tokens) for job in jobs)
        self._swapper = Swapper(
            pool, {} if machine.preemption == "recompute" else {Tier.HOST: slots}, proactive=machine.preemption == "proactive"
        )
        self._scheduler = Scheduler(
            machine.limits(),
            PrefixCache(pool, mode="off"),  # a trace has lengths, no tokens
            _policy(policy, machine.cost_model(), {number: job.output_tokens for number, job in enumerate(jobs)}),
            max_model_len=machine.max_model_len,
            queue=QueueLimits(len(jobs)),
            swapper=self._swapper,
        )
        self._clock = SimulatedClock()
        self._link = Link(self._clock, BLOCK_SIZE * machine.kv_bytes_per_token / machine.link_bytes_per_s)
        self._transfers = Transfers(self._scheduler, self._link)
        self._arrived = self._steps = self._peak = 0

    def run(self) -> Run:
        while self._arrived < len(self._served) or len(self._scheduler):
            if not len(self._scheduler):
                self._clock.now = max(self._clock.now, self._served[self._arrived].job.arrival_s)
            self._take_arrivals()
            self._transfers.collect()
            plan = self._scheduler.plan(self._clock.now)
            if self._transfers.begin(plan):
                self._step(plan)
        counts = self._swapper.counts
        return Run(
            tuple(self._served),
            self._clock.now,
            self._steps,
            self._scheduler.num_preemptions,
            (counts.blocks_out + counts.blocks_in) * BLOCK_SIZE * self._machine.kv_bytes_per_token,
            self._link.waited_s,
            self._peak,
        )

    def _take_arrivals(self) -> None:
        while self._arrived < len(self._served) and self._served[self._arrived].job.arrival_s <= self._clock.now:
            job = self._served[self._arrived].job
            params = SamplingParams(max_tokens=self._machine.max_model_len, stop_token_ids=frozenset((_END.token_id,)))
            self._scheduler.add(Request(self._arrived, _prompt(job.prompt_tokens), params), self._clock.now)
            self._arrived += 1

    def _step(self, plan: StepPlan) -> None:
        started = self._clock.now
        self._clock.now += self._machine.costs.seconds(plan.work(self._machine.windows))
        with self._scheduler.reserve(plan) as reservation:
            self._peak = max(self._peak, self._scheduler.pool.num_used)
            tokens = [self._token(sequence.request.request_id, len(sequence.output_token_ids)) for sequence in plan.sampling]
            for event in reservation.commit(tokens, started=started, ended=self._clock.now):
                if isinstance(event, TokenEvent):
                    self._note(event)
        self._steps += 1

    def _token(self, number: int, drawn: int) -> SampledToken:
        served = self._served[number]
        if drawn == 0:
            served.first_token_s = self._clock.now
        return _END if drawn + 1 == served.job.output_tokens else _ON

    def _note(self, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            self._served[event.request_id].finished_s = self._clock.now
            self._on_finished()


def _policy(name: str, cost_model: CostModel, output_lengths: Mapping[int, int]) -> Policy:
    if name == SRPT_ORACLE:
        return ShortestRemainingFirst(cost_model, output_lengths)
    return make_policy(name, cost_model)


@functools.cache
def _prompt(num_tokens: int) -> tuple[int, ...]:
    return (0,) * num_tokens
