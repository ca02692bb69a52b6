"""Budgets of a step from what steps cost."""

from __future__ import annotations

import pytest

from fastserve.core.batch_limits import fill_in, suitable_limits
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts


@pytest.mark.parametrize(
    ("base_ms", "token_ms", "sequences", "tokens"),
    [
        (6.0, 1.5, 16, 64),  # compute bound
        (36.0, 0.1, 64, 512),  # memory bound
        (14.5, 1.3, 48, 192),
        (0.0, 1.0, 8, 64),
        (1.0, 0.0, 64, 512),
        (0.0, 0.0, 8, 64),
    ],
)
def test_the_limits_grow_with_what_a_step_costs_beside_its_tokens(base_ms, token_ms, sequences, tokens):
    limits = suitable_limits(StepCosts(base_ms / 1e3, token_ms / 1e3))
    assert (limits.max_num_seqs, limits.max_batched_tokens) == (sequences, tokens)


def test_where_drawing_a_token_costs_more_than_computing_one_fewer_sequences_suit():
    limits = suitable_limits(StepCosts(0.006, 0.0005, row_s=0.001))
    assert (limits.max_num_seqs, limits.max_batched_tokens) == (16, 192)


def test_every_running_sequence_can_always_take_a_step():
    for ratio in range(0, 1000, 7):
        limits = suitable_limits(StepCosts(ratio * 1e-3, 1e-3))
        assert limits.max_num_seqs <= limits.max_batched_tokens


@pytest.mark.parametrize(
    ("given", "filled_in"),
    [
        ((0, 0), (40, 160)),
        ((7, 0), (7, 160)),
        ((0, 300), (40, 300)),
        ((0, 24), (24, 24)),
        ((200, 0), (200, 200)),
        ((200, 300), (200, 300)),
    ],
)
def test_a_limit_that_is_given_stands_and_the_other_is_chosen_so_that_each_sequence_can_take_a_step(given, filled_in):
    assert fill_in(*given, StepLimits(40, 160)) == StepLimits(*filled_in)
