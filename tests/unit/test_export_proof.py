"""The proof covers every token in every schedule, and refuses what is out of tolerance."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.errors import ProofFailed
from fastserve.export.proof import (
    Reference,
    Schedule,
    chunked_schedule,
    greedy_agreement,
    judge,
    largest_difference,
    packed_schedule,
    solo_schedule,
)

LENGTHS = [5, 9, 37, 74, 1]
GOOD = {
    "logit_scale": 2.0,
    "max_abs_logit_difference": 1e-3,
    "max_abs_logit_difference_chunked": 1e-3,
    "max_abs_difference_alone_batched": 1e-5,
    "max_abs_logit_difference_kv_fp16": 0.1,
    "max_abs_logit_difference_kv_int8": 0.3,
    "greedy_disagreements": 0.0,
}


def tokens_of(schedule: Schedule, sequence: int) -> list[int]:
    return [at for run in schedule for i, start, count in run if i == sequence for at in range(start, start + count)]


@pytest.mark.parametrize("schedule", [packed_schedule(LENGTHS), chunked_schedule(LENGTHS)], ids=["packed", "chunked"])
def test_a_schedule_computes_every_token_of_every_sequence_once_and_in_order(schedule: Schedule) -> None:
    for sequence, length in enumerate(LENGTHS):
        assert tokens_of(schedule, sequence) == list(range(length))


def test_a_solo_schedule_holds_one_sequence_only() -> None:
    schedule = solo_schedule(2, 37)
    assert tokens_of(schedule, 2) == list(range(37))
    assert all(len(run) == 1 for run in schedule)


def test_the_chunked_schedule_mixes_chunks_of_prompts_with_decodes() -> None:
    assert any({count for _, _, count in run} >= {1, 16} for run in chunked_schedule(LENGTHS))


@pytest.mark.parametrize("measure", [name for name in GOOD if name != "logit_scale"])
@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_a_measure_out_of_tolerance_fails_the_proof_by_name(measure: str, factor: float) -> None:
    judge(GOOD)
    with pytest.raises(ProofFailed, match=measure):
        judge(GOOD | {measure: factor})


@pytest.mark.parametrize(
    "measure", ["max_abs_logit_difference", "max_abs_logit_difference_chunked", "max_abs_difference_alone_batched"]
)
def test_tolerances_grow_with_the_scale_of_the_logits(measure: str) -> None:
    slightly_worse = GOOD | {measure: GOOD[measure] * 3}
    judge(slightly_worse | {"logit_scale": 4.0})
    with pytest.raises(ProofFailed):
        judge(slightly_worse)
    with pytest.raises(ProofFailed):
        judge(GOOD | {"logit_scale": 0.1})


def test_a_swapped_near_tie_is_counted_apart_from_a_disagreement() -> None:
    wanted = np.array([[1.0, 1.00005, 0.0], [1.0, 2.0, 0.0], [5.0, 0.0, 0.0]], np.float32)
    got = np.array([[1.0, 0.99999, 0.0], [2.0, 1.0, 0.0], [5.0, 0.0, 0.0]], np.float32)
    agreement = greedy_agreement([got], [wanted], Reference([[0, 0, 0]], [wanted]).scale)
    assert agreement == {"greedy_disagreements": 1.0, "greedy_ties": 1.0}


@pytest.mark.parametrize("size", [100.0, 1.0, 0.01])
def test_the_scale_is_that_of_the_logits_also_when_they_are_small(size: float) -> None:
    rows = np.random.default_rng(0).normal(0.0, size, (64, 32)).astype(np.float32)
    assert Reference([[0] * 64], [rows]).scale == pytest.approx(size, rel=0.1)


def test_nearly_constant_logits_have_a_scale_of_their_size() -> None:
    assert Reference([[0]], [np.full((1, 8), 5.0, np.float32)]).scale == pytest.approx(5e-3)


def test_a_long_sequence_is_compared_in_its_last_rows_only() -> None:
    assert Reference([[0] * 9, [0] * 100], [np.ones((9, 2), np.float32), np.ones((80, 2), np.float32)]).first_rows == [0, 20]


def test_a_row_that_was_never_computed_shows_as_nan() -> None:
    assert np.isnan(largest_difference([np.array([[np.nan, 1.0]], np.float32)], [np.ones((1, 2), np.float32)]))
