"""What steps cost on this machine, found out when a model is loaded, and what follows from it, said in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastserve.config import EngineConfig
from fastserve.core.batch_limits import fill_in, suitable_limits
from fastserve.core.cost_model import CostModel
from fastserve.core.policy import AUTOMATIC
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.cost_file import CostFile
from fastserve.engine.engine import Engine
from fastserve.engine.warm_up import WARM_UP_REQUEST_ID

logger = logging.getLogger(__name__)


def find_costs(engine: Engine, file: CostFile, num_tokens: int, clock: Callable[[], float]) -> None:
    """Let the engine's cost model start from what an earlier start measured, else from measurements made now, of steps of up to
    ``num_tokens`` tokens; they are kept in ``file``. The engine must be warm and without requests."""
    if not file.restore(engine.cost_model):
        _profile(engine, num_tokens, clock)
        file.keep(engine.cost_model)


def _profile(engine: Engine, num_tokens: int, clock: Callable[[], float]) -> None:
    """Prefills of several sizes, each a step, and decodes."""
    samples: list[tuple[int, float]] = []
    for size in (num_tokens - 2, num_tokens // 2, num_tokens // 4):
        engine.reset_counters()  # nothing of what comes is in the prefix cache
        part = (0,) * max(1, size)
        engine.submit(Request(WARM_UP_REQUEST_ID, part, SamplingParams(max_tokens=4, temperature=0.0)))
        tokens_of_step = len(part)
        while engine.has_work:
            started = clock()
            engine.step()
            samples.append((tokens_of_step, clock() - started))
            tokens_of_step = 1
    engine.reset_counters()
    engine.cost_model.start_from(samples or [(1, 0.0)])


def log_costs(config: EngineConfig, costs: CostModel) -> None:
    """What a step costs, which policy that speaks for, and which limits would suit it."""
    share = costs.base_s / costs.step_seconds(costs.max_num_seqs)
    bound = "memory bound" if share > 0.5 else "compute bound"
    logger.info(
        "a step takes %.2f ms and %.3f ms a token: in a full batch %.0f %% is spent whatever the number of tokens (%s)",
        costs.base_s * 1e3,
        costs.token_s * 1e3,
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
    fitting = suitable_limits(costs.base_s, costs.token_s)
    logger.info("batches of %d sequences and %d tokens suit these costs", fitting.max_num_seqs, fitting.max_batched_tokens)


def choose_limits(config: EngineConfig, engine: Engine) -> None:
    """Give the engine the limits that suit what its steps cost, in place of those that are 0 in ``config``."""
    costs = engine.cost_model
    limits = fill_in(config.max_num_seqs, config.max_batched_tokens, suitable_limits(costs.base_s, costs.token_s))
    engine.scheduler.limits = limits
    costs.limit(max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens)
    for name in ("max_num_seqs", "max_batched_tokens"):
        if getattr(config, name) == 0:
            because = f"a step costs as much as {costs.base_s / costs.token_s:.1f} of its tokens"
            logger.info("%s 0: %d, because %s", name, getattr(limits, name), because)
