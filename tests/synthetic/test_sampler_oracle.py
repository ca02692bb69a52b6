"""The sampler against transformers' logits processors and warpers, in the order of ``GenerationMixin``."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastserve.core.sequence import Sequence
from tests.doubles import make_request
from tests.sampling_oracle import process_logits

VOCAB = 120
FILTERS = {"top_k": (0, 1, 7, 60, 500), "top_p": (1.0, 0.947, 0.513, 0.011), "min_p": (0.0, 0.02, 0.3, 1.0)}


def sequence(prompt, outputs, **params):
    made = Sequence(make_request(0, prompt, **({"temperature": 1.0, "max_tokens": 1000} | params)))
    made.output_token_ids.extend(outputs)
    return made


def reference(row, made):
    """What transformers makes of ``row``. [vocab_size], excluded tokens -inf."""
    params, prompt = made.request.params, list(made.request.prompt_token_ids)
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_tokens and params.stop_token_ids:
        # Its minimum counts the tokens there are, so one less than ours forbids the end of the same tokens.
        stop = sorted(params.stop_token_ids)
        processors.append(MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, stop, device="cpu"))
    if not params.greedy:
        processors.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            processors.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1.0:
            processors.append(TopPLogitsWarper(params.top_p))
        if params.min_p > 0.0:
            processors.append(MinPLogitsWarper(params.min_p))
    ids = torch.tensor([prompt + made.output_token_ids])
    return processors(ids, torch.from_numpy(row.copy())[None])[0].numpy()


def assert_same(row, made):
    """The same tokens survive with the same values. Of equal logits at a cut, either may survive."""
    ours, theirs = process_logits(row, made), reference(row, made)
    kept_ours, kept_theirs = ours > -np.inf, theirs > -np.inf
    assert np.sort(ours[kept_ours]) == pytest.approx(np.sort(theirs[kept_theirs]), abs=1e-5, rel=1e-5)
    both = kept_ours & kept_theirs
    assert ours[both] == pytest.approx(theirs[both], abs=1e-5, rel=1e-5)
    only_ours, only_theirs = np.flatnonzero(kept_ours & ~kept_theirs), np.flatnonzero(kept_theirs & ~kept_ours)
    assert sorted(row[only_ours]) == sorted(row[only_theirs]), "tokens that are not ties were treated differently"


def rows(count, seed, *, ties=False):
    """Rows of logits of all kinds of sharpness; with ``ties`` rounded to few values."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, VOCAB)) * rng.choice([0.1, 1.0, 4.0, 12.0], (count, 1))
    return (np.round(made) if ties else made).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.9])
def test_the_temperature_agrees(temperature):
    for row in rows(20, seed=1):
        assert_same(row, sequence([1], [], temperature=temperature))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FILTERS.items() for value in values])
def test_each_filter_alone_agrees(name, value, ties):
    for row in rows(40, seed=2, ties=ties):
        assert_same(row, sequence([1], [], **{name: value}))


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), itertools.product(*FILTERS.values()))
def test_every_combination_of_filters_agrees(top_k, top_p, min_p):
    for seed, row in enumerate(rows(12, seed=3)):
        assert_same(row, sequence([1], [], top_k=top_k, top_p=top_p, min_p=min_p, temperature=(0.5, 1.0, 1.5)[seed % 3]))


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0, 10.0])
def test_the_repetition_penalty_agrees_over_prompt_and_output(penalty):
    rng = np.random.default_rng(4)
    for row in rows(30, seed=5):
        prompt, outputs = rng.integers(0, VOCAB, 12).tolist(), rng.integers(0, VOCAB, 9).tolist()
        assert_same(row, sequence(prompt, outputs, repetition_penalty=penalty))
        assert_same(row, sequence(prompt, outputs, repetition_penalty=penalty, temperature=0.0))


def test_a_token_seen_many_times_is_penalised_once_by_repetition():
    row = np.zeros(VOCAB, np.float32)
    row[[3, 4]] = 2.0, -2.0
    made = sequence([3, 3, 4], [3, 4, 4], repetition_penalty=4.0)
    assert_same(row, made)
    assert process_logits(row, made)[[3, 4]].tolist() == [0.5, -8.0]


def test_the_minimum_length_agrees():
    for produced, row in enumerate(rows(6, seed=6)):
        made = sequence([1, 2], [5] * produced, min_tokens=4, stop_token_ids=frozenset({9, 77}))
        assert_same(row, made)
        assert np.isneginf(process_logits(row, made)[[9, 77]]).all() == (produced < 4)


@pytest.mark.parametrize("seed", range(40))
def test_everything_at_once_agrees_on_random_rows_and_parameters(seed):
    rng = np.random.default_rng(1000 + seed)
    for row in rows(10, seed=2000 + seed):
        assert_same(
            row,
            sequence(
                rng.integers(0, VOCAB, int(rng.integers(1, 20))).tolist(),
                rng.integers(0, VOCAB, int(rng.integers(0, 20))).tolist(),
                temperature=float(rng.uniform(0.1, 2.0)),
                top_k=int(rng.integers(0, 80)),
                top_p=float(rng.uniform(0.05, 1.0)),
                min_p=float(rng.choice([0.0, rng.uniform(0.0, 0.5)])),
                repetition_penalty=float(rng.choice([1.0, rng.uniform(0.7, 2.0)])),
                min_tokens=int(rng.integers(0, 20)),
                stop_token_ids=frozenset(rng.integers(0, VOCAB, 3).tolist()),
            ),
        )


@pytest.mark.parametrize("seed", range(20))
def test_presence_and_frequency_penalties_follow_the_openai_formula(seed):
    rng = np.random.default_rng(seed)
    row = rows(1, seed=seed)[0]
    prompt, outputs = rng.integers(0, VOCAB, 10).tolist(), rng.integers(0, 12, 30).tolist()
    presence, frequency = rng.uniform(-2, 2, 2).tolist()
    ours = process_logits(row, sequence(prompt, outputs, presence_penalty=presence, frequency_penalty=frequency))
    expected = [
        value - outputs.count(token) * frequency - (presence if token in outputs else 0.0)
        for token, value in enumerate(row.tolist())
    ]
    assert ours == pytest.approx(np.array(expected), abs=1e-5)


def test_presence_and_frequency_penalties_leave_the_prompt_alone():
    row = rows(1, seed=0)[0]
    made = sequence([1, 2, 3], [], presence_penalty=2.0, frequency_penalty=2.0)
    assert np.array_equal(process_logits(row, made), row)


def test_penalties_come_before_the_temperature():
    row = np.ones(VOCAB, np.float32)
    made = sequence([1], [7], presence_penalty=1.0, repetition_penalty=2.0, temperature=0.5)
    assert process_logits(row, made)[7] == pytest.approx((1.0 / 2.0 - 1.0) / 0.5)
