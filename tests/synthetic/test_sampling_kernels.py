"""The C++ passes over logits against the NumPy sampler, and against themselves on every instruction set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastserve.core.request import SamplingParams
from fastserve.core.sequence import Sequence
from fastserve.worker.kernels.sampling import Logits, draw_token, largest_tokens, log_sum_exp
from fastserve.worker.sampler import uniform
from tests.doubles import make_request
from tests.sampling_oracle import draw, process_logits

PARAMETERS = [
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=1.7, top_k=40),
    SamplingParams(top_k=1),
    SamplingParams(top_k=100_000),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.05),
    SamplingParams(top_p=0.999999),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02),
]


def some_logits(vocab_size: int, seed: int = 0, spread: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(vocab_size) * spread).astype(np.float32)


def drawn(row: Logits, params: SamplingParams, number: float) -> int:
    return draw_token(row, params.temperature, params.top_k, params.top_p, params.min_p, number)


@pytest.mark.parametrize("vocab_size", [1, 7, 256, 257, 5003])
@pytest.mark.parametrize("params", PARAMETERS, ids=str)
def test_tokens_are_those_of_the_numpy_sampler(isa: str, params: SamplingParams, vocab_size: int) -> None:
    for seed in range(20):
        row = some_logits(vocab_size, seed, spread=(0.5, 3.0, 12.0)[seed % 3])
        row[: vocab_size // 3] = np.where(np.arange(vocab_size // 3) % 5 == 0, -np.inf, row[: vocab_size // 3])
        if seed % 4 == 0:
            row = np.round(row)  # many equals
        number = uniform(seed, 3)
        expected = draw(process_logits(row, Sequence(dataclasses.replace(make_request(0, [1]), params=params))), number)
        assert drawn(row, params, number) == expected


@pytest.mark.parametrize("params", PARAMETERS, ids=str)
def test_instruction_sets_agree_on_every_draw(params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    row, found = some_logits(49_152), {}
    for name in ("generic", "avx2", "avx512"):
        monkeypatch.setenv("FASTSERVE_ISA", name)
        found[name] = [drawn(row, params, uniform(seed, 0)) for seed in range(50)], log_sum_exp(row)
    assert found["generic"] == found["avx2"] == found["avx512"]


def test_the_largest_token_is_the_first_of_equals(isa: str) -> None:
    rows = np.stack([np.round(some_logits(5003, seed)) for seed in range(8)])
    assert largest_tokens(rows).tolist() == np.argmax(rows, axis=1).tolist()


@pytest.mark.parametrize("vocab_size", [1, 7, 256, 333])
def test_every_place_of_a_row_is_looked_at(isa: str, vocab_size: int) -> None:
    rows = np.full((vocab_size, vocab_size), -2.0, np.float32)
    np.fill_diagonal(rows, -1.0)
    assert largest_tokens(rows).tolist() == list(range(vocab_size))
    np.fill_diagonal(rows, np.nan)
    assert largest_tokens(rows).tolist() == [-1] * vocab_size
    assert all(np.isnan(log_sum_exp(row)) for row in rows)


def test_zeros_of_both_signs_are_equals(isa: str) -> None:
    rows = np.full((2, 600), -np.inf, np.float32)
    rows[0, 300:] = rows[1, 300:] = 0.0
    rows[0, 300] = rows[1, 301:] = -0.0
    assert largest_tokens(rows).tolist() == [300, 300]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 255, 256, 4999])
def test_a_row_that_is_not_finite_has_no_token_and_its_neighbours_have_theirs(isa: str, place: int, broken: float) -> None:
    rows = np.stack([some_logits(5003, seed) for seed in range(3)])
    rows[1, place] = broken
    assert largest_tokens(rows).tolist() == [int(rows[0].argmax()), -1, int(rows[2].argmax())]
    assert drawn(rows[1], SamplingParams(), 0.5) == -1


def test_where_everything_is_excluded_no_token_is_left(isa: str) -> None:
    row = np.full(300, -np.inf, np.float32)
    assert drawn(row, SamplingParams(), 0.5) == -1
    assert largest_tokens(row[None]).tolist() == [-1]
    assert log_sum_exp(row) == -np.inf


@pytest.mark.parametrize("number", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_distribution_are_tokens_that_are_allowed(isa: str, number: float) -> None:
    row = some_logits(1000)
    row[:10] = row[-10:] = -np.inf
    assert drawn(row, SamplingParams(), number) == (10 if number == 0.0 else 989)


def test_draws_follow_the_distribution(isa: str) -> None:
    row = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    tokens = [drawn(row, SamplingParams(), (i + 0.5) / 8000) for i in range(8000)]
    assert np.bincount(tokens).tolist() == [4000, 2000, 1000, 1000]
    nucleus = dataclasses.replace(SamplingParams(), top_p=0.7)
    assert {drawn(row, nucleus, (i + 0.5) / 100) for i in range(100)} == {0, 1}


def test_log_sum_exp_is_that_of_doubles(isa: str) -> None:
    for spread in (0.1, 3.0, 300.0):
        row = some_logits(5003, spread=spread)
        exact = row.max() + np.log(np.exp(row.astype(np.float64) - float(row.max())).sum())
        assert log_sum_exp(row) == pytest.approx(exact, rel=1e-14)


def test_logits_of_another_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: contiguous float32"):
        largest_tokens(np.zeros((2, 8), np.float32)[:, ::2])
