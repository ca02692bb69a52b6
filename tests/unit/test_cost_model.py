"""The cost of a step: terms that are fitted to what was measured."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from fastserve.core.attention_windows import pairs_of
from fastserve.core.cost_model import MIN_SECONDS, CostModel
from fastserve.core.step_work import StepCosts, StepWork, chunk_work
from fastserve.errors import ConfigError

TRUE = StepCosts(0.004, 0.0002, row_s=0.0001, read_s=1.4e-6, pair_s=0.19e-6)
"""Much like a small model on two cores."""


def make_model(base_s=0.006, token_s=0.0015, max_num_seqs=16, max_batched_tokens=256, **others):
    return CostModel(StepCosts(base_s, token_s, **others), max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens)


def decodes(count, context):
    return StepWork(count, count, count * context, count * context)


def traffic(rng):
    """A step of mixed traffic: decodes after some context, mostly beside a chunk of a prompt."""
    step = decodes(rng.randrange(17), rng.randrange(1, 4000))
    if rng.random() < 0.3 and step.rows:
        return step
    chunk = chunk_work(rng.randrange(4000), rng.randrange(1, 240), rng.random() < 0.5)
    return StepWork(*(one + other for one, other in zip(step, chunk, strict=True)))


def test_a_step_costs_its_base_its_tokens_its_rows_and_its_contexts():
    model = make_model(row_s=0.0005, read_s=1e-5, pair_s=1e-6)
    assert model.step_seconds(StepWork(100, 4, 300, 2000)) == pytest.approx(0.006 + 0.15 + 0.002 + 0.003 + 0.002)
    assert model.min_step_seconds == pytest.approx(0.006 + 0.0015 + 0.0005 + 1e-5 + 1e-6)


def test_without_the_other_terms_a_step_costs_its_base_and_its_tokens():
    model = make_model()
    assert model.step_seconds(StepWork(100, 5, 1000, 50_000)) == 0.006 + 100 * 0.0015
    assert model.min_step_seconds == 0.0075
    assert model.decode_seconds(1000) == 0.0015 + 0.006 / 16
    assert model.prefill_seconds(100, 1000) == 100 * 0.0015
    assert model.pair_tokens == 0.0


def test_each_token_attends_to_those_before_it_and_itself():
    assert [pairs_of(start, size) for start, size in ((0, 1), (0, 3), (10, 1), (10, 3))] == [1, 6, 11, 36]
    assert chunk_work(10, 3, 1) == StepWork(3, 1, 13, 36)


def test_a_first_token_costs_a_base_for_each_chunk_of_the_prompt():
    model = make_model()
    assert model.first_token_seconds(256) == pytest.approx(0.006 + 256 * 0.0015)
    assert model.first_token_seconds(257) == pytest.approx(2 * 0.006 + 257 * 0.0015)


def test_a_first_token_costs_what_its_chunks_do_as_steps():
    model = make_model(row_s=0.0005, read_s=1e-5, pair_s=1e-6)
    chunks = (chunk_work(0, 256, 0), chunk_work(256, 256, 0), chunk_work(512, 88, 1))
    assert model.first_token_seconds(600) == pytest.approx(sum(map(model.step_seconds, chunks)))


def test_one_token_takes_exactly_the_first_quantum():
    chance = random.Random(0)
    for _ in range(200):
        costs = {name: chance.random() for name in ("base_s", "token_s", "row_s", "read_s", "pair_s")}
        model = CostModel(StepCosts(**costs), max_num_seqs=16, max_batched_tokens=256)
        assert model.first_token_seconds(1) == model.min_step_seconds


def test_an_output_token_costs_its_row_and_its_context_and_a_share_of_the_step():
    model = make_model(row_s=0.0005, read_s=1e-5, pair_s=1e-6)
    assert model.decode_seconds(100) == pytest.approx(0.0015 + 0.0005 + 0.006 / 16 + 100 * 1.1e-5)


def test_a_position_costs_its_share_of_a_token_in_a_full_step():
    assert make_model(pair_s=1e-6).pair_tokens == pytest.approx(1e-6 / (0.0015 + 0.006 / 256))
    assert make_model(0.256, 0.0, pair_s=1e-6).pair_tokens == pytest.approx(1e-3, rel=1e-4)  # tokens for nothing, but steps cost


def test_it_learns_every_term_from_mixed_traffic():
    model, rng = make_model(0.02, 0.001), random.Random(0)
    for _ in range(6000):
        work = traffic(rng)
        model.observe(work, TRUE.seconds(work) * rng.uniform(0.97, 1.03))
    for name, true in dataclasses.asdict(TRUE).items():
        assert getattr(model.costs, name) == pytest.approx(true, rel=0.25), name
    for work in (decodes(1, 10), decodes(16, 200), decodes(16, 3000), chunk_work(0, 256, 1), chunk_work(3000, 200, 0)):
        assert model.step_seconds(work) == pytest.approx(TRUE.seconds(work), rel=0.1)


def test_it_follows_a_machine_that_becomes_slower():
    model = make_model()
    for _ in range(3000):
        for tokens in (1, 16, 256):
            model.observe(StepWork(tokens), 3 * (0.006 + 0.0015 * tokens))
    assert model.costs.base_s == pytest.approx(0.018, rel=0.05)
    assert model.costs.token_s == pytest.approx(0.0045, rel=0.05)


def test_equal_steps_for_a_long_time_do_not_change_the_terms():
    model = CostModel(TRUE, max_num_seqs=16, max_batched_tokens=256)
    for _ in range(50_000):
        model.observe(decodes(16, 500), TRUE.seconds(decodes(16, 500)))
    assert dataclasses.astuple(model.costs) == pytest.approx(dataclasses.astuple(TRUE), rel=1e-4)


def test_decodes_that_become_dearer_are_followed_though_they_do_not_say_by_what():
    model = CostModel(TRUE, max_num_seqs=16, max_batched_tokens=256)
    for number in range(3000):
        work = decodes(16, 100 + number % 400)
        model.observe(work, 1.5 * TRUE.seconds(work))
    for context in (100, 300, 499):
        assert model.step_seconds(decodes(16, context)) == pytest.approx(1.5 * TRUE.seconds(decodes(16, context)), rel=0.05)
    assert model.costs.pair_s == pytest.approx(TRUE.pair_s, rel=0.1)  # of which these steps say next to nothing


def test_an_interruption_does_not_upset_it():
    model = make_model()
    for _ in range(111):
        model.observe(StepWork(16), 0.03)
    assert model.observe(StepWork(16), 100.0)
    assert model.step_seconds(StepWork(16)) < 0.04


def test_it_is_never_negative_whatever_was_measured():
    model, rng = make_model(), random.Random(1)
    for _ in range(3000):
        model.observe(traffic(rng), rng.choice((0.0, 0.0, 1.0, -5.0)))
        assert model.costs.base_s >= MIN_SECONDS and model.costs.token_s >= MIN_SECONDS
        assert min(dataclasses.astuple(model.costs)) >= 0.0
        assert math.isfinite(model.step_seconds(StepWork(256, 16, 10**5, 10**6)))


def test_it_says_when_the_costs_are_others():
    model = make_model()
    said = [model.observe(StepWork(16), 0.1) for _ in range(2 * CostModel.FIT_STEPS)]
    assert [number + 1 for number, changed in enumerate(said) if changed] == [CostModel.FIT_STEPS, 2 * CostModel.FIT_STEPS]


def test_steps_that_cost_less_with_more_tokens_give_a_constant():
    model = make_model()
    model.start_from([(StepWork(1), 0.2), (StepWork(100), 0.1)])
    assert (model.costs.base_s, model.costs.token_s) == (pytest.approx(0.15), MIN_SECONDS)


def test_steps_that_would_cost_less_than_nothing_without_tokens_give_a_line_through_the_origin():
    model = make_model()
    model.start_from([(StepWork(100), 0.1), (StepWork(200), 0.3)])
    assert model.costs.base_s == MIN_SECONDS
    assert model.costs.token_s == pytest.approx((100 * 0.1 + 200 * 0.3) / (100**2 + 200**2))


def test_a_profile_is_a_new_beginning():
    model, rng = make_model(5.0, 5.0), random.Random(2)
    model.start_from([(work, TRUE.seconds(work)) for work in (traffic(rng) for _ in range(30))])
    assert dataclasses.astuple(model.costs) == pytest.approx(dataclasses.astuple(TRUE))
    for _ in range(CostModel.FIT_STEPS):
        model.observe(decodes(1, 1), TRUE.seconds(decodes(1, 1)))
    assert dataclasses.astuple(model.costs) == pytest.approx(dataclasses.astuple(TRUE))


def test_a_profile_of_equal_steps_is_their_mean():
    model = make_model()
    model.start_from([(decodes(1, 1), 0.01), (decodes(1, 1), 0.03)])
    assert model.min_step_seconds == pytest.approx(0.02, rel=1e-3)


def test_what_a_profile_does_not_tell_apart_is_the_simpler_terms():
    model = make_model()
    model.start_from([(decodes(count, 1), 0.01 + 0.002 * count) for count in (1, 2, 8)])
    assert dataclasses.astuple(model.costs) == pytest.approx((0.01, 0.002, 0.0, 0.0, 0.0))


def test_it_comes_back_from_json_as_it_was():
    model, rng = make_model(), random.Random(3)
    for _ in range(50):
        model.observe(traffic(rng), 0.02)
    again = make_model(9.0, 9.0)
    again.restore(model.to_json())
    assert again.costs == model.costs


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(StepCosts)])
@pytest.mark.parametrize("bad", [None, "fast", True, -1.0, math.nan, math.inf])
def test_json_that_holds_no_costs_is_refused_by_key(name, bad):
    with pytest.raises(ConfigError, match=rf"^{name}: got .*, allowed: a finite number of seconds, at least 0"):
        make_model().restore(make_model().to_json() | {name: bad})


def test_of_costs_that_an_older_version_kept_the_first_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"^row_s: got None"):
        make_model().restore({"base_s": 0.1, "token_s": 0.1})
