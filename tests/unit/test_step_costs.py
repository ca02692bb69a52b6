"""What is found out when a model is loaded: measured once, said in the log, and not measured again."""

from __future__ import annotations

import logging

import pytest

from fastserve.config import EngineConfig
from fastserve.core.cost_model import CostModel
from fastserve.core.planner import StepLimits
from fastserve.engine.cost_file import CostFile
from fastserve.engine.step_costs import choose_limits, find_costs, log_costs
from tests.doubles import FakeClock, make_engine, make_request
from tests.hashing_runner import HashingRunner


class SlowRunner(HashingRunner):
    """Takes 10 ms a step and 1 ms a token."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def run(self, batch, kv_cache):
        self.clock.advance(0.010 + 0.001 * len(batch.input_ids))
        return super().run(batch, kv_cache)


def start(cache):
    clock = FakeClock()
    runner = SlowRunner(clock)
    engine = make_engine(runner, num_blocks=200, max_batched_tokens=64, clock=clock)
    find_costs(engine, CostFile(cache, {"model": "a"}), 64, clock)
    return engine, runner


def test_the_first_start_measures_and_the_next_one_need_not(tmp_path):
    engine, runner = start(tmp_path)
    assert runner.batches
    costs = engine.cost_model
    assert (costs.base_s, costs.token_s) == (pytest.approx(0.010), pytest.approx(0.001))
    again, idle = start(tmp_path)
    assert idle.batches == []
    assert again.cost_model.to_json() == costs.to_json()


def test_nothing_of_the_measurement_stays(tmp_path):
    engine, _ = start(tmp_path)
    assert not engine.has_work and engine.scheduler.pool.num_used == 0
    assert engine.stats().steps == engine.stats().generation_tokens == 0


@pytest.mark.parametrize(
    ("base_s", "token_s", "bound", "suits"),
    [
        (0.006, 0.0015, "compute bound", "batches of 16 sequences and 64 tokens"),
        (0.036, 0.0001, "memory bound", "batches of 64 sequences and 512 tokens"),
    ],
)
def test_the_log_says_what_a_step_costs_why_the_policy_is_what_it_is_and_what_would_suit(caplog, base_s, token_s, bound, suits):
    costs = CostModel(base_s, token_s, max_num_seqs=16, max_batched_tokens=256)
    with caplog.at_level(logging.INFO):
        log_costs(EngineConfig(), costs)
    assert f"a step takes {base_s * 1e3:.2f} ms" in caplog.text
    assert f"policy auto: gittins; in simulations of real traffic on machines that are {bound}" in caplog.text
    assert suits in caplog.text


def test_a_policy_that_was_chosen_is_not_explained(caplog):
    with caplog.at_level(logging.INFO):
        log_costs(EngineConfig(policy="gittins"), CostModel(0.006, 0.0015, max_num_seqs=16, max_batched_tokens=256))
    assert "policy auto" not in caplog.text


def test_limits_that_are_left_open_are_chosen_from_what_steps_cost_and_the_log_says_why(tmp_path, caplog):
    engine, runner = start(tmp_path)
    with caplog.at_level(logging.INFO):
        choose_limits(EngineConfig(max_num_seqs=0, max_batched_tokens=0), engine)
    assert engine.scheduler.limits == StepLimits(40, 160)
    assert (engine.cost_model.max_num_seqs, engine.cost_model.max_batched_tokens) == (40, 160)
    assert "max_num_seqs 0: 40, because a step costs as much as 10.0 of its tokens" in caplog.text
    for number in range(50):
        engine.submit(make_request(number, [number + 1], max_tokens=2))
    engine.step()
    assert len(runner.batches[-1].past_seqlens) == 40


def test_only_the_limit_that_is_left_open_is_chosen(tmp_path, caplog):
    engine, _ = start(tmp_path)
    with caplog.at_level(logging.INFO):
        choose_limits(EngineConfig(max_num_seqs=0, max_batched_tokens=24), engine)
    assert engine.scheduler.limits == StepLimits(24, 24)
    assert "max_batched_tokens 0" not in caplog.text
