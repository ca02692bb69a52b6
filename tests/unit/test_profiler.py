"""What `fastserve bench step` measures: phases of iterations, runs of a profile, and the figures made of them."""

from __future__ import annotations

import json
import random

import pytest

from fastserve.core.request import SamplingParams
from fastserve.errors import StepFailed, ToolError
from fastserve.profiler.measurement import Load, Step, run
from fastserve.profiler.node_times import RUNTIME, read_runs
from fastserve.profiler.report import report
from tests.doubles import FakeClock, HashingRunner, make_engine, make_request

GREEDY = SamplingParams(temperature=0.0)
VOCABULARY = 50


class SlowRunner(HashingRunner):
    """A run takes a second, and one more for each token."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def run(self, batch, kv_cache):
        self._clock.advance(1.0 + batch.num_tokens)
        return super().run(batch, kv_cache)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def engine(clock):
    return make_engine(SlowRunner(clock), clock=clock)


def test_the_time_of_an_iteration_goes_to_the_phase_it_was_spent_in(engine, clock):
    engine.submit(make_request(1, [1, 2, 3], max_tokens=2))
    clock.advance(100.0)  # before the iteration: of no phase
    engine.step()
    engine.step()
    assert engine.times.seconds == {"plan": 0, "reserve": 0, "pack": 0, "run": 6.0, "sample": 0, "commit": 0}
    assert engine.stats().step_seconds == 6.0
    assert engine.stats().computed_tokens == 4


def test_counters_that_start_again_forget_phases_too(engine):
    engine.submit(make_request(1, [1], max_tokens=1))
    engine.step()
    engine.reset_counters()
    assert sum(engine.times.seconds.values()) == 0
    assert engine.stats().computed_tokens == 0


def test_every_iteration_of_a_load_is_a_step_with_its_tokens_and_its_time(engine, clock):
    load = Load(((1, 2, 3), (4, 5)), (3, 1))
    seen = []
    steps = run(engine, load.requests(GREEDY), clock, seen.append)
    assert [(step.computed, step.answered, step.seconds["run"]) for step in steps] == [(5, 2, 6.0), (1, 1, 2.0), (1, 1, 2.0)]
    assert [step.only_decodes for step in steps] == [False, True, True]
    assert seen == [2, 1, 1]


def test_a_request_that_fails_ends_the_measurement_with_its_reason(clock):
    runner = HashingRunner()
    runner.failures = [StepFailed("no luck")]
    with pytest.raises(ToolError, match="a request failed: no luck"):
        run(make_engine(runner, clock=clock), Load(((1,),), (1,)).requests(GREEDY), clock, lambda _: None)


def test_a_load_is_drawn_from_its_seed():
    lengths = [(3, 5), (2, 7)]
    load = Load.draw(lengths, VOCABULARY, random.Random(1))
    assert load == Load.draw(lengths, VOCABULARY, random.Random(1)) != Load.draw(lengths, VOCABULARY, random.Random(2))
    assert [(len(request.prompt_token_ids), request.params.max_tokens) for request in load.requests(GREEDY)] == lengths


def node(name, start, microseconds, *shape):
    arguments = {"op_name": name, "output_type_shape": [{"float": list(shape)}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": microseconds, "args": arguments}


def model_run(start, microseconds):
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": microseconds}


@pytest.fixture
def profile(tmp_path):
    file = tmp_path / "profile.json"
    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 50},
        model_run(100, 100),
        node("Gather", 101, 5, 3, 8),
        node("MatMul", 110, 45, 3, 8),
        node("MatMul", 160, 20, 3, VOCABULARY),
        model_run(300, 200),
        node("PagedAttention", 310, 50, 3, 8),
        node("QuantizedMatMul", 370, 60, 3, 8),
        node("Mul", 440, 30, 3, 8),
        node("SkipSimplifiedLayerNormalization", 480, 10, 3, 8),
    ]
    file.write_text(json.dumps(events[::-1]), encoding="utf-8")
    return file


def test_a_profile_says_what_each_run_spent_on_each_kind_of_node(profile):
    first, second = read_runs(profile, VOCABULARY)
    microseconds = [{kind: round(1e6 * seconds) for kind, seconds in run.kinds.items() if seconds} for run in (first, second)]
    assert microseconds[0] == {"other": 5, "linear": 45, "head": 20, RUNTIME: 30}
    assert microseconds[1] == {"attention": 50, "linear": 60, "norm, elementwise": 40, RUNTIME: 50}
    assert second.operators["Mul"] == pytest.approx(30e-6)
    assert (first.total, second.total) == pytest.approx((100e-6, 200e-6))


def step(run_seconds, computed, answered):
    phases = {"plan": 0.1, "reserve": 0.1, "pack": 0.1, "run": run_seconds, "sample": 0.1, "commit": 0.1, "between": 0.5}
    return Step(phases, computed, answered)


def test_the_report_lays_the_shares_of_the_profile_on_the_time_of_the_first_measurement(profile):
    steps = [step(3.5, 3, 1), step(1.5, 1, 1)]
    slower = [step(30.0, 3, 1), step(10.0, 1, 1)]
    found = report(steps, (slower, read_runs(profile, VOCABULARY)))
    assert found["output_tokens_per_s"] == pytest.approx(2 / 7.0)
    everything, decodes = found["steps"]["all"], found["steps"]["only decodes"]
    assert everything["mean_ms"] == pytest.approx(3500)
    assert everything["python_ms"] == pytest.approx(500) and everything["python_share"] == pytest.approx(1 / 6)
    assert sum(everything["run_ms"].values()) == pytest.approx(everything["phases_ms"]["run"]) == pytest.approx(2500)
    assert everything["run_ms"]["attention"] == pytest.approx(2500 * 50 / 300)
    assert decodes["run_ms"]["attention"] == pytest.approx(1500 * 50 / 200)
    assert decodes["number"] == 1 and everything["tokens"] == 2
    assert list(found["operators"])[:2] == ["MatMul", "QuantizedMatMul"]
    assert found["operators"]["QuantizedMatMul"] == pytest.approx(60 / 300)
