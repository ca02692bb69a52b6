"""Budgets of a step from what steps cost."""

from __future__ import annotations

import pytest

from fastserve.core.batch_limits import suitable_limits


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
    limits = suitable_limits(base_ms / 1e3, token_ms / 1e3)
    assert (limits.max_num_seqs, limits.max_batched_tokens) == (sequences, tokens)


def test_every_running_sequence_can_always_take_a_step():
    for ratio in range(0, 1000, 7):
        limits = suitable_limits(ratio * 1e-3, 1e-3)
        assert limits.max_num_seqs <= limits.max_batched_tokens
