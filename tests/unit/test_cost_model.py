"""The cost of a step: a line that is fitted to what was measured."""

from __future__ import annotations

import math
import random

import pytest

from fastserve.core.cost_model import MIN_SECONDS, CostModel
from fastserve.errors import ConfigError


def make_model(base_s=0.006, token_s=0.0015, max_num_seqs=16, max_batched_tokens=256):
    return CostModel(base_s, token_s, max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens)


def test_a_step_costs_its_base_and_its_tokens():
    model = make_model()
    assert model.step_seconds(100) == pytest.approx(0.156)
    assert model.min_step_seconds == pytest.approx(0.0075)
    assert model.decode_work_s == pytest.approx(0.0015 + 0.006 / 16)


def test_a_first_token_costs_a_base_for_each_chunk_of_the_prompt():
    model = make_model()
    assert model.first_token_seconds(256) == pytest.approx(0.006 + 256 * 0.0015)
    assert model.first_token_seconds(257) == pytest.approx(2 * 0.006 + 257 * 0.0015)


def test_it_learns_what_the_machine_does():
    model, rng = make_model(1.0, 1.0), random.Random(0)
    for _ in range(5000):
        tokens = rng.choice((1, 8, 16, 200))
        model.observe(tokens, (0.036 + 0.0001 * tokens) * rng.uniform(0.9, 1.1))
    assert model.base_s == pytest.approx(0.036, rel=0.1)
    assert model.token_s == pytest.approx(0.0001, rel=0.2)


def test_it_follows_a_machine_that_becomes_slower():
    model = make_model()
    for _ in range(3000):
        for tokens in (1, 16, 256):
            model.observe(tokens, 3 * (0.006 + 0.0015 * tokens))
    assert model.base_s == pytest.approx(0.018, rel=0.05)
    assert model.token_s == pytest.approx(0.0045, rel=0.05)


def test_equal_steps_for_a_long_time_do_not_change_the_slope():
    model = make_model()
    for _ in range(100_000):
        model.observe(16, model.step_seconds(16))
    assert model.token_s == pytest.approx(0.0015, rel=1e-6)


def test_an_interruption_does_not_upset_it():
    model = make_model()
    for _ in range(100):
        model.observe(16, 0.03)
    model.observe(16, 100.0)
    assert model.step_seconds(16) < 0.04


def test_it_is_never_negative_whatever_was_measured():
    model, rng = make_model(), random.Random(1)
    for _ in range(3000):
        model.observe(rng.choice((1, 256)), rng.choice((0.0, 0.0, 1.0, -5.0)))
        assert model.base_s >= MIN_SECONDS and model.token_s >= MIN_SECONDS
        assert math.isfinite(model.step_seconds(256))


def test_steps_that_cost_less_with_more_tokens_give_a_constant():
    model = make_model()
    model.start_from([(1, 0.2), (100, 0.1)])
    assert (model.base_s, model.token_s) == (pytest.approx(0.15), MIN_SECONDS)


def test_steps_that_would_cost_less_than_nothing_without_tokens_give_a_line_through_the_origin():
    model = make_model()
    model.start_from([(100, 0.1), (200, 0.3)])
    assert model.base_s == MIN_SECONDS
    assert model.token_s == pytest.approx((100 * 0.1 + 200 * 0.3) / (100**2 + 200**2))


def test_a_profile_is_a_new_beginning():
    model = make_model(5.0, 5.0)
    model.start_from([(size, 0.01 + 0.001 * size) for size in (1, 1, 64, 256)])
    assert (model.base_s, model.token_s) == (pytest.approx(0.01), pytest.approx(0.001))
    model.observe(1, 0.011)
    assert model.base_s == pytest.approx(0.01)


def test_a_profile_of_equal_steps_is_their_mean():
    model = make_model()
    model.start_from([(1, 0.01), (1, 0.03)])
    assert model.min_step_seconds == pytest.approx(0.02, rel=1e-3)


def test_it_comes_back_from_json_as_it_was():
    model = make_model()
    model.observe(16, 0.02)
    again = make_model(9.0, 9.0)
    again.restore(model.to_json())
    assert (again.base_s, again.token_s) == (model.base_s, model.token_s)


@pytest.mark.parametrize("bad", [None, "fast", True, -1.0, math.nan, math.inf])
def test_json_that_holds_no_costs_is_refused_by_key(bad):
    with pytest.raises(ConfigError, match=r"^token_s: got .*, allowed: a finite number of seconds, at least 0"):
        make_model().restore({"base_s": 0.1, "token_s": bad})
