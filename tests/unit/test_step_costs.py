"""What is found out when a model is loaded: measured once, said in the log, and not measured again."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest

from fastserve.config import EngineConfig
from fastserve.core.batch_limits import suitable_limits
from fastserve.core.cost_model import CostModel
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts, StepWork
from fastserve.engine.cost_file import CostFile
from fastserve.engine.step_costs import choose_limits, find_costs, log_costs
from fastserve.errors import StepFailed
from tests.doubles import FakeClock, make_engine, make_request
from tests.hashing_runner import HashingRunner

SLOW = StepCosts(0.010, 0.001)


class SlowRunner(HashingRunner):
    """Takes ``costs`` of the clock's time."""

    def __init__(self, clock, costs):
        super().__init__()
        self.clock, self.costs = clock, costs

    def run(self, batch, kv_cache):
        reads = pairs = 0
        for start, size in zip(batch.past_seqlens, np.diff(batch.cumulative_sequence_length), strict=True):
            reads, pairs = reads + int(start + size), pairs + sum(range(int(start) + 1, int(start + size) + 1))
        work = StepWork(len(batch.input_ids), len(batch.logits_rows), reads, pairs)
        self.clock.advance(self.costs.seconds(work))
        return super().run(batch, kv_cache)


class FailingRunner(HashingRunner):
    def run(self, batch, kv_cache):
        raise MemoryError("no memory")


def start(cache, costs=SLOW, **sizes):
    clock = FakeClock()
    runner = SlowRunner(clock, costs)
    engine = make_engine(runner, **{"num_blocks": 200, "max_batched_tokens": 64, **sizes}, clock=clock)
    find_costs(engine, CostFile(cache, {"model": "a"}), 64, clock)
    return engine, runner


def serve_slowly(engine, runner):
    """Some traffic whose steps take longer; what was learned from it, which is kept."""
    runner.costs = StepCosts(0.030, 0.001)
    for number in range(20):
        engine.submit(make_request(number, range(number, number + 40), max_tokens=20))
    while engine.has_work:
        engine.step()
    engine.keep_costs()
    return engine.cost_model.costs


def test_the_first_start_measures_and_the_next_one_need_not(tmp_path):
    engine, runner = start(tmp_path)
    assert runner.batches
    costs = engine.cost_model.costs
    assert dataclasses.astuple(costs) == pytest.approx(dataclasses.astuple(SLOW), abs=1e-9)
    again, idle = start(tmp_path)
    assert idle.batches == []
    assert again.cost_model.costs == costs


def test_what_an_engine_has_learned_is_where_the_next_one_begins(tmp_path):
    learned = serve_slowly(*start(tmp_path))
    assert learned.seconds(StepWork(8, 8)) > 1.5 * SLOW.seconds(StepWork(8, 8))
    again, _ = start(tmp_path)
    assert again.cost_model.costs == learned


def test_limits_that_are_left_open_are_the_same_at_every_start_whatever_was_learned_in_between(tmp_path, caplog):
    def limits(engine):
        choose_limits(EngineConfig(max_num_seqs=0, max_batched_tokens=0), engine, engine.cost_file.profiled)
        return engine.scheduler.limits

    engine, runner = start(tmp_path)
    profiled = engine.cost_file.profiled
    first = limits(engine)
    for _ in range(2):
        learned = serve_slowly(engine, runner)
        assert suitable_limits(learned) != suitable_limits(profiled)
        engine, runner = start(tmp_path)
        assert (engine.cost_model.costs, engine.cost_file.profiled) == (learned, profiled)
        assert dataclasses.replace(limits(engine), pair_tokens=0.0) == dataclasses.replace(first, pair_tokens=0.0)
    with caplog.at_level(logging.INFO):
        log_costs(EngineConfig(), engine.cost_model, profiled)
    assert (
        f"batches of {first.max_num_seqs} sequences and {first.max_batched_tokens} tokens suit what was measured" in caplog.text
    )


def test_an_engine_that_nobody_gave_a_file_keeps_nothing(tmp_path):
    make_engine().keep_costs()
    assert sorted(tmp_path.iterdir()) == []


def test_every_term_is_measured_and_chunks_beside_decodes_are_bounded_by_them_at_once(tmp_path):
    costs = StepCosts(0.010, 0.001, row_s=0.0005, read_s=2e-5, pair_s=1e-6)
    roomy = {"num_blocks": 1000, "max_model_len": 3000}
    engine, _ = start(tmp_path, costs, **roomy)
    assert dataclasses.astuple(engine.cost_model.costs) == pytest.approx(dataclasses.astuple(costs))
    again, _ = start(tmp_path, costs, **roomy)
    for each in (engine, again):
        assert each.scheduler.limits.pair_tokens == each.cost_model.pair_tokens == pytest.approx(1e-6 / (0.001 + 0.010 / 64))


def test_without_room_for_a_long_context_nothing_is_said_of_one(tmp_path):
    costs = StepCosts(0.010, 0.001, row_s=0.0005)
    engine, runner = start(tmp_path, costs, num_blocks=20, max_model_len=70)
    assert max(batch.past_seqlens.max() for batch in runner.batches) < 70
    assert dataclasses.astuple(engine.cost_model.costs) == pytest.approx(dataclasses.astuple(costs), abs=1e-9)


def test_costs_of_an_older_version_are_measured_again(tmp_path, caplog):
    file = CostFile(tmp_path, {"model": "a"})
    old = {"base_s": 0.1, "token_s": 0.1}
    file.path.write_text(json.dumps({"circumstances": {"model": "a"}, **old, "profiled": old}))
    engine, _ = start(tmp_path)
    assert "row_s: got None" in caplog.text
    assert dataclasses.astuple(engine.cost_model.costs) == pytest.approx(dataclasses.astuple(SLOW), abs=1e-9)
    assert json.loads(file.path.read_text())["row_s"] == engine.cost_model.costs.row_s


def test_costs_without_those_that_were_profiled_are_measured_again(tmp_path, caplog):
    file = CostFile(tmp_path, {"model": "a"})
    file.path.write_text(json.dumps({"circumstances": {"model": "a"}, **dataclasses.asdict(StepCosts(1.0, 1.0))}))
    engine, _ = start(tmp_path)
    assert "profiled: got None, allowed: an object" in caplog.text
    assert engine.cost_file.profiled == engine.cost_model.costs
    assert json.loads(file.path.read_text())["profiled"] == dataclasses.asdict(engine.cost_model.costs)


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
    costs = CostModel(StepCosts(base_s, token_s), max_num_seqs=16, max_batched_tokens=256)
    with caplog.at_level(logging.INFO):
        log_costs(EngineConfig(), costs, costs.costs)
    assert f"a step takes {base_s * 1e3:.2f} ms" in caplog.text
    assert f"policy auto: gittins; in simulations of real traffic on machines that are {bound}" in caplog.text
    assert suits in caplog.text


def test_a_policy_that_was_chosen_is_not_explained(caplog):
    with caplog.at_level(logging.INFO):
        log_costs(EngineConfig(policy="gittins"), CostModel(SLOW, max_num_seqs=16, max_batched_tokens=256), SLOW)
    assert "policy auto" not in caplog.text


def test_limits_that_are_left_open_are_chosen_from_what_steps_cost_and_the_log_says_why(tmp_path, caplog):
    engine, runner = start(tmp_path)
    with caplog.at_level(logging.INFO):
        choose_limits(EngineConfig(max_num_seqs=0, max_batched_tokens=0), engine, SLOW)
    assert engine.scheduler.limits == StepLimits(40, 160)
    assert (engine.cost_model.max_num_seqs, engine.cost_model.max_batched_tokens) == (40, 160)
    assert "max_num_seqs 0: 40, because a step costs as much as 10.0 of its tokens that are drawn" in caplog.text
    assert "max_batched_tokens 0: 160, because a step costs as much as 10.0 of its tokens" in caplog.text
    for number in range(50):
        engine.submit(make_request(number, [number + 1], max_tokens=2))
    engine.step()
    assert len(runner.batches[-1].past_seqlens) == 40


def test_only_the_limit_that_is_left_open_is_chosen(tmp_path, caplog):
    engine, _ = start(tmp_path)
    with caplog.at_level(logging.INFO):
        choose_limits(EngineConfig(max_num_seqs=0, max_batched_tokens=24), engine, SLOW)
    assert engine.scheduler.limits == StepLimits(24, 24)
    assert "max_batched_tokens 0" not in caplog.text


@pytest.mark.parametrize(
    "sizes", [{"max_queue_size": 4}, {"max_queue_size_per_tenant": 4}, {"num_blocks": 20, "max_model_len": 70}], ids=str
)
def test_what_is_measured_are_the_sequences_that_a_queue_and_a_pool_let_in(tmp_path, sizes):
    costs = StepCosts(0.010, 0.001, row_s=0.0005)
    engine, _ = start(tmp_path, costs, max_num_seqs=16, **sizes)
    assert dataclasses.astuple(engine.cost_model.costs) == pytest.approx(dataclasses.astuple(costs), abs=1e-9)


def test_a_queue_of_one_tells_no_row_from_a_step(tmp_path):
    engine, _ = start(tmp_path, StepCosts(0.010, 0.001, row_s=0.0005), max_num_seqs=16, max_queue_size=1)
    assert engine.cost_model.step_seconds(StepWork(20, 1)) == pytest.approx(0.010 + 20 * 0.001 + 0.0005)


def test_a_step_that_fails_in_the_measurement_says_why(tmp_path):
    engine = make_engine(FailingRunner(), max_batched_tokens=64, num_blocks=200)
    with pytest.raises(StepFailed, match="not enough memory"):
        find_costs(engine, CostFile(tmp_path, {"model": "a"}), 64, FakeClock())
