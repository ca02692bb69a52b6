"""What steps cost on this machine, found out when a model is loaded, and what follows from it, said in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from fastserve.config import EngineConfig
from fastserve.core.batch_limits import fill_in, suitable_limits
from fastserve.core.cost_model import CostModel
from fastserve.core.events import Event, Failed
from fastserve.core.policy import AUTOMATIC
from fastserve.core.request import Request, SamplingParams
from fastserve.core.sequence import SequenceStatus
from fastserve.core.step_work import StepCosts, StepWork
from fastserve.engine.cost_file import CostFile
from fastserve.engine.engine import Engine
from fastserve.engine.warm_up import WARM_UP_REQUEST_ID
from fastserve.errors import FastServeError

logger = logging.getLogger(__name__)

Samples = list[tuple[StepWork, float]]
"""Steps and the seconds they took."""
_DRAWN = 4
"""Tokens of each answer in the profile."""
_TOGETHER = 16
"""Sequences that decode in a step of it."""
_FAR = 2048
"""Tokens behind those that are computed late in a context."""


def find_costs(engine: Engine, file: CostFile, num_tokens: int, clock: Callable[[], float]) -> None:
    """Let the engine's cost model start from what an earlier engine learned, else from measurements made now, of steps of up to
    ``num_tokens`` tokens; they are kept in ``file``, which is the engine's from now on. The engine must be warm and without
    requests."""
    if not file.restore(engine.cost_model):
        _profile(engine, num_tokens, clock)
        measured = engine.cost_model.costs
        if not file.restore(engine.cost_model):  # by another instance, which was quicker: all of a model begin alike
            file.profiled = measured
            file.keep(engine.cost_model)
    engine.cost_file = file
    engine.bound_chunks()


def _profile(engine: Engine, num_tokens: int, clock: Callable[[], float]) -> None:
    """Prompts of several sizes, each a step, and decodes: alone, together, and late in a long context."""
    scheduler = engine.scheduler
    samples: Samples = []
    for size in (num_tokens - 2, num_tokens // 2, num_tokens // 4, num_tokens // 16):
        samples += _run(engine, 1, max(1, size), 0, clock)
    samples += _run(engine, min(_TOGETHER, scheduler.limits.max_num_seqs, num_tokens), 1, 0, clock)
    room = min(scheduler.max_model_len, scheduler.pool.num_blocks * scheduler.pool.block_size)
    far = min(_FAR, room - num_tokens - _DRAWN)
    if far >= num_tokens:
        for size in (num_tokens // 2, num_tokens // 4):
            samples += _run(engine, 1, max(1, size), far, clock)
    engine.reset_counters()
    engine.cost_model.start_from(samples or [(StepWork(1, 1, 1, 1), 0.0)])


def _run(engine: Engine, sequences: int, size: int, context: int, clock: Callable[[], float]) -> Samples:
    """Steps in which so many sequences, or as many as are accepted, compute ``size`` tokens each after ``context`` others, then
    draw tokens one by one. Raises what a step failed with."""
    engine.reset_counters()  # nothing of what comes is in the prefix cache
    prompt, params = (0,) * (context + size), SamplingParams(max_tokens=_DRAWN, temperature=0.0)
    for number in range(sequences):
        if _failures(engine.submit(Request(WARM_UP_REQUEST_ID - number, prompt, params))):
            break  # the queue is full, or it is too long for the model
    if context:
        _pretend(engine, context)
    samples: Samples = []
    while engine.has_work:
        work = engine.scheduler.plan(clock()).work(engine.cost_model.windows)
        started = clock()
        events = engine.step()
        samples.append((work, clock() - started))
        if failed := _failures(events):
            raise failed[0]
    return samples


def _failures(events: Sequence[Event]) -> list[FastServeError]:
    return [event.error for event in events if isinstance(event, Failed)]


def _pretend(engine: Engine, context: int) -> None:
    """Let the sequences go on as if so many of their tokens were computed already: what is in their blocks does not change what
    a step takes, but that they are written to does, because memory that is not is a single page of zeros."""
    scheduler = engine.scheduler
    for sequence in scheduler.sequences:
        table = scheduler.pool.allocate(scheduler.pool.blocks_for(context))
        engine.kv_cache.copy_blocks([(table[0], block) for block in table[1:]])
        sequence.block_table, sequence.num_computed, sequence.status = table, context, SequenceStatus.RUNNING
        scheduler.holders[sequence] = None


def log_costs(config: EngineConfig, model: CostModel, profiled: StepCosts) -> None:
    """What a step costs, which policy that speaks for, and which limits would suit what it cost when it was ``profiled``."""
    costs, sequences = model.costs, model.max_num_seqs
    share = costs.base_s / model.step_seconds(StepWork(sequences, sequences))
    bound = "memory bound" if share > 0.5 else "compute bound"
    logger.info(
        "a step takes %.2f ms, %.3f ms a token, %.3f ms more where one is drawn, and for 1,000 positions of a context %.3f ms to "
        "read them and %.3f ms for each token that attends to them: in a full batch of decodes %.0f %% is spent whatever their "
        "number (%s)",
        costs.base_s * 1e3,
        costs.token_s * 1e3,
        costs.row_s * 1e3,
        costs.read_s * 1e6,
        costs.pair_s * 1e6,
        100 * share,
        bound,
    )
    if config.policy == "auto":
        logger.info(
            "policy auto: %s; in simulations of real traffic on machines that are %s its mean completion time and its P95 "
            "latency for each output token were below those of first come, first served",
            AUTOMATIC,
            bound,
        )
    fitting = suitable_limits(profiled)
    logger.info(
        "batches of %d sequences and %d tokens suit what was measured before there was any traffic: %.2f ms a step, %.3f ms a "
        "token, %.3f ms more where one is drawn",
        fitting.max_num_seqs,
        fitting.max_batched_tokens,
        profiled.base_s * 1e3,
        profiled.token_s * 1e3,
        profiled.row_s * 1e3,
    )


def choose_limits(config: EngineConfig, engine: Engine, costs: StepCosts) -> None:
    """Give the engine the limits that suit ``costs``, in place of those that are 0 in ``config``. Costs that were profiled: those
    learned from traffic differ from start to start, and so would the limits."""
    limits = fill_in(config.max_num_seqs, config.max_batched_tokens, suitable_limits(costs))
    engine.scheduler.limits = limits
    engine.cost_model.limit(max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens)
    engine.bound_chunks()
    for name, each_s, what in (
        ("max_num_seqs", costs.token_s + costs.row_s, "tokens that are drawn"),
        ("max_batched_tokens", costs.token_s, "tokens"),
    ):
        if getattr(config, name) == 0:
            because = f"a step costs as much as {costs.base_s / each_s:.1f} of its {what}"
            logger.info("%s 0: %d, because %s", name, getattr(limits, name), because)
