"""The sampler: what a row's token depends on, and what it must never depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastserve.core.plan import SampledToken
from fastserve.core.sequence import Sequence
from fastserve.errors import InvalidRequest, StepFailed
from fastserve.worker.logprobs import position_logprobs
from fastserve.worker.sampler import Sampler, answer_seed, uniform
from tests.doubles import make_request
from tests.sampling_oracle import draw, process_logits

VOCAB = 50


def sequence(prompt=(1, 2), outputs=(), **params):
    made = Sequence(make_request(0, prompt, **({"max_tokens": 1000} | params)))
    made.output_token_ids.extend(outputs)
    return made


def random_logits(rows, seed=0, vocab=VOCAB):
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * 3).astype(np.float32)


def token_of(row, made):
    (token,) = Sampler().sample(row[None], [made])
    return token.token_id


# --- bad words ---------------------------------------------------------------------------------------------------------


def test_a_bad_word_is_cut_short_before_its_last_token():
    row = np.array([3.0, 2.0, 1.0], np.float32)
    words = {"temperature": 0.0, "bad_words": ((1, 2, 0),)}
    assert token_of(row, sequence(outputs=(1, 2), **words)) == 1
    assert token_of(row, sequence(outputs=(2, 2), **words)) == 0
    assert token_of(row, sequence(outputs=(2,), **words)) == 0
    assert token_of(row, sequence(prompt=(1, 2), **words)) == 0  # only the output counts


def test_a_bad_word_of_one_token_never_comes_up():
    row = np.array([30.0, 2.0, 1.0], np.float32)
    for seed in range(20):
        assert token_of(row, sequence(temperature=1.0, seed=seed, bad_words=((0,),))) != 0


def test_bad_words_that_leave_nothing_to_choose_are_named():
    (error,) = Sampler().sample(np.zeros((1, 2), np.float32), [sequence(bad_words=((0,), (1,)))])
    assert isinstance(error, InvalidRequest) and str(error).startswith("bad_words: got ((0,), (1,)), allowed: ")


# --- uniform ----------------------------------------------------------------------------------------------------------


def test_the_uniform_number_is_a_pure_function_with_known_values():
    assert [uniform(7, 3) for _ in range(3)] == [uniform(7, 3)] * 3
    assert (uniform(0, 0), uniform(7, 3)) == (0.6524484863740322, 0.6042348053683145)  # a change breaks every client's seeds


def test_each_answer_of_a_request_has_a_seed_of_its_own_and_the_first_has_the_requests():
    assert answer_seed(7, 0) == 7
    seeds = {answer_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500 and answer_seed(7, 3) == answer_seed(7, 3) == 11119990994194613384  # also clients' seeds


def test_the_answers_of_a_request_draw_differently_from_the_same_row():
    logits, tokens = random_logits(1), set()
    for index in range(20):
        made = Sequence(make_request(0, [1, 2], temperature=1.0, seed=5, n=20), index)
        (token,) = Sampler().sample(logits, [made])
        tokens.add(token.token_id)
    assert len(tokens) > 5


def test_uniform_numbers_are_spread_evenly():
    numbers = np.array([uniform(seed, position) for seed in range(40) for position in range(500)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    expected = len(numbers) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0


def test_neighbouring_seeds_and_positions_are_unrelated():
    grid = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)])
    assert len(np.unique(grid)) == grid.size
    for left, right in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:]), (grid[:-1, 1:], grid[1:, :-1])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.02


def test_any_64_bit_seed_is_accepted_and_negative_ones_differ_from_positive_ones():
    seeds = [-(2**63), -1, 0, 1, 2**63 - 1, 2**64 - 2]
    numbers = [uniform(seed, 0) for seed in seeds]
    assert len(set(numbers)) == len(seeds)
    assert all(0.0 <= number < 1.0 for number in numbers)


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_best_token_and_the_first_of_equals():
    logits = random_logits(20)
    logits[3, [7, 9]] = 99.0
    tokens = [token.token_id for token in Sampler().sample(logits, [sequence()] * 20)]
    assert tokens == np.argmax(logits, axis=1).tolist()
    assert tokens[3] == 7


def test_greedy_ignores_temperature_filters_and_seed():
    row = random_logits(1)[0]
    assert {token_of(row, sequence(seed=seed, top_k=5, top_p=0.1, min_p=0.5)) for seed in range(20)} == {int(row.argmax())}


def test_greedy_with_a_penalty_takes_the_best_of_the_penalised_row():
    row = np.zeros(VOCAB, np.float32)
    row[[4, 5]] = 3.0, 2.5
    assert token_of(row, sequence(outputs=[4], presence_penalty=1.0)) == 5


def test_the_logits_are_left_as_they_were():
    logits = random_logits(4)
    before = logits.copy()
    Sampler().sample(
        logits,
        [sequence(outputs=[3], temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5, min_tokens=5)] * 4,
    )
    assert np.array_equal(logits, before)


def test_an_empty_batch_gives_no_tokens():
    assert Sampler().sample(np.empty((0, VOCAB), np.float32), []) == []


def test_a_seeded_draw_is_the_same_alone_and_in_a_crowd_in_any_order():
    logits = random_logits(12)
    crowd = [
        sequence(
            prompt=(index, 3),
            outputs=range(index % 4),
            temperature=0.3 + index / 5 if index % 3 else 0.0,
            seed=index * 7,
            top_k=index,
            top_p=1.0 - index / 30,
            frequency_penalty=index / 12,
        )
        for index in range(12)
    ]
    alone = [Sampler().sample(row[None], [made])[0] for row, made in zip(logits, crowd, strict=True)]
    assert len({token.token_id for token in alone}) > 3
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(12)
        together = Sampler().sample(logits[order], [crowd[index] for index in order])
        assert together == [alone[index] for index in order]


def test_the_seed_and_the_position_both_change_what_is_drawn():
    row = np.zeros(VOCAB, np.float32)
    assert len({token_of(row, sequence(temperature=1.0, seed=seed)) for seed in range(200)}) > 40
    assert len({token_of(row, sequence(outputs=[0] * n, temperature=1.0, seed=1)) for n in range(200)}) > 40


def test_draws_follow_the_softmax_of_the_row():
    row = np.array([0.0, 1.0, 2.0, -1.0, 0.5, -np.inf], np.float32)
    expected = np.exp(row[:5]) / np.exp(row[:5]).sum() * 10_000
    counts = np.bincount([token_of(row, sequence(temperature=1.0, seed=seed)) for seed in range(10_000)], minlength=6)
    assert counts[5] == 0
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_the_temperature_sharpens_and_flattens_the_draws():
    row = np.array([0.0, 1.0], np.float32)
    for temperature in (0.5, 1.0, 4.0):
        share = np.mean([token_of(row, sequence(temperature=temperature, seed=seed)) for seed in range(4000)])
        assert share == pytest.approx(1 / (1 + math.exp(-1 / temperature)), abs=0.025)


def test_a_draw_never_returns_an_excluded_token():
    for index, row in enumerate(random_logits(200, seed=5)):
        row[np.random.default_rng(index).random(VOCAB) < 0.9] = -np.inf
        row[index % VOCAB] = 1.0
        for number in (0.0, 2.0**-53, 0.3, 0.999, 1 - 2.0**-53):
            assert row[draw(row, number)] > -np.inf


def test_the_quantiles_edges_are_the_first_and_the_last_token_that_have_weight():
    row = np.array([-np.inf, 1.0, 1.0, 1.0, 1.0, -np.inf], np.float32)
    assert draw(row, 0.0) == 1
    assert draw(row, math.nextafter(0.25, 0)) == 1
    assert draw(row, 0.25) == 2
    assert draw(row, 0.75) == 4
    assert draw(row, 1 - 2.0**-53) == 4


def test_a_token_whose_weight_vanishes_is_never_drawn_at_the_edge():
    row = np.array([-1000.0, 0.0, 0.0, -1000.0], np.float32)
    assert draw(row, 0.0) == 1
    assert draw(row, 1 - 2.0**-53) == 2


# --- ending and failing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_row_that_is_not_finite_fails_alone(poison, temperature):
    logits = random_logits(3)
    healthy = Sampler().sample(logits, [sequence(temperature=temperature)] * 3)
    logits[1, 4] = poison
    tokens = Sampler().sample(logits, [sequence(temperature=temperature)] * 3)
    assert isinstance(tokens[1], StepFailed)
    assert not tokens[1].retryable
    assert [tokens[0], tokens[2]] == [healthy[0], healthy[2]]


def test_a_row_of_nothing_but_minus_infinity_fails_alone():
    logits = random_logits(2)
    logits[0] = -np.inf
    first, second = Sampler().sample(logits, [sequence()] * 2)
    assert isinstance(first, StepFailed)
    assert isinstance(second, SampledToken)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_cannot_be_drawn_before_min_tokens(temperature):
    row = np.zeros(VOCAB, np.float32)
    row[[7, 8]] = 30.0
    params = {"temperature": temperature, "min_tokens": 3, "stop_token_ids": frozenset({7, 8})}
    for produced in range(3):
        assert token_of(row, sequence(outputs=[0] * produced, **params)) not in (7, 8)
    assert token_of(row, sequence(outputs=[0] * 3, **params)) in (7, 8)  # after three tokens it may end


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_that_excludes_every_token_fails_alone(temperature):
    everything = sequence(temperature=temperature, min_tokens=3, stop_token_ids=frozenset(range(VOCAB)), top_p=0.5)
    first, second = Sampler().sample(random_logits(2), [everything, sequence()])
    assert isinstance(first, InvalidRequest) and first.field == "min_tokens"
    assert isinstance(second, SampledToken)


def test_a_bug_met_by_one_row_fails_that_row_alone(caplog):
    out_of_range = sequence(min_tokens=3, stop_token_ids=frozenset({VOCAB + 5}))
    first, second = Sampler().sample(random_logits(2), [out_of_range, sequence()])
    assert isinstance(first, StepFailed) and "IndexError" in str(first)
    assert isinstance(second, SampledToken)
    assert "could not be sampled" in caplog.text


def test_log_probabilities_are_the_log_softmax_of_the_unchanged_row():
    logits = random_logits(6, seed=2)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    made = sequence(temperature=0.4, top_k=5, repetition_penalty=2.0, return_logprobs=True, seed=9)
    for row, (token, reference) in enumerate(zip(Sampler().sample(logits, [made] * 6), exact, strict=True)):
        assert token.logprob == pytest.approx(reference[token.token_id], abs=1e-9), row


def test_log_probabilities_are_only_computed_when_asked_for():
    (token,) = Sampler().sample(random_logits(1), [sequence()])
    assert token.logprob is None


def test_the_likeliest_tokens_are_those_of_the_unchanged_row():
    row = random_logits(1, seed=2)[0]
    made = sequence(temperature=0.4, top_k=5, repetition_penalty=2.0, logprobs=3, seed=9)
    (token,) = Sampler().sample(row[None], [made])
    assert token.logprobs == position_logprobs(row, token.token_id, 3)
    (token,) = Sampler().sample(row[None], [sequence()])
    assert token.logprobs is None


def test_log_probabilities_survive_logits_of_any_size():
    row = np.array([3e4, 0.0, -3e4], np.float32)
    (token,) = Sampler().sample(row[None], [sequence(prompt=(1,), return_logprobs=True)])
    assert token == SampledToken(0, 0.0)


def test_without_parameters_that_change_it_the_row_stays_as_it_is():
    row = random_logits(1)[0]
    assert np.array_equal(process_logits(row, sequence(temperature=1.0)), row)
    assert process_logits(row, sequence(temperature=1.0)) is not row


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 0.99999])
def test_a_nucleus_among_the_best_tokens_is_the_nucleus_of_all(top_p):
    vocabulary = 20_000
    for spread in (0.1, 2.0, 6.0):
        row = (np.random.default_rng(3).standard_normal(vocabulary) * spread).astype(np.float32).round(2)  # with ties
        order = np.lexsort((-np.arange(vocabulary), -row))
        mass = np.exp(row[order].astype(np.float64) - row.max())
        mass /= mass.sum()
        expected = set(order[np.cumsum(mass) - mass < top_p].tolist())
        assert set(np.flatnonzero(np.isfinite(process_logits(row, sequence(temperature=1.0, top_p=top_p)))).tolist()) == expected
