"""Answers from start and end logits: rows by hand, and every span tried against the fast search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.tasks.answer_spans import Answer, best_spans, context_probabilities, merge_answers, whole_words


def columns(starts: list[float], ends: list[float]) -> np.ndarray:
    return np.array([starts, ends], np.float32).T


def spans(probabilities: np.ndarray, count: int, max_length: int) -> list[tuple[int, int]]:
    found = best_spans(probabilities, count, max_length)
    return list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_only_the_context_and_the_first_token_share_the_probability():
    # [CLS] question [SEP] context context [SEP]; the question's and the separators' logits are huge and do not count
    logits = np.log(columns([1, 9999, 9999, 2, 5, 9999], [2, 9999, 9999, 6, 2, 9999]))
    probabilities, null_score = context_probabilities(logits, slice(3, 5), with_first_token=True)
    assert probabilities == pytest.approx(columns([2 / 8, 5 / 8], [6 / 10, 2 / 10]))
    assert null_score == pytest.approx(1 / 8 * 2 / 10)


def test_without_a_token_for_no_answer_the_context_shares_all():
    probabilities, null_score = context_probabilities(np.log(columns([7, 1, 3], [7, 1, 1])), slice(1, 3), with_first_token=False)
    assert probabilities == pytest.approx(columns([1 / 4, 3 / 4], [1 / 2, 1 / 2]))
    assert null_score == 0.0


def test_logits_of_any_size_give_probabilities():
    probabilities, null_score = context_probabilities(
        columns([-3e4, 2e4, 2e4], [3e4, -3e4, -3e4]), slice(1, 3), with_first_token=True
    )
    assert probabilities == pytest.approx(columns([0.5, 0.5], [0, 0]))
    assert null_score == 0.0


@pytest.mark.parametrize("with_first_token", [True, False])
def test_a_window_without_context_has_no_probabilities(with_first_token):
    probabilities, null_score = context_probabilities(columns([1, 2], [3, 4]), slice(2, 2), with_first_token=with_first_token)
    assert probabilities.shape == (0, 2)
    assert null_score == float(with_first_token)
    assert spans(probabilities, 3, 15) == []


# --- the best spans ---------------------------------------------------------------------------------------------------


def test_the_best_span_ends_after_it_starts():
    assert spans(columns([0.1, 0.1, 0.8], [0.8, 0.15, 0.05]), 1, 15) == [(0, 0)]  # 0.08; the 0.64 would end before it starts


def test_a_span_is_no_longer_than_allowed():
    probabilities = columns([0.9, 0.05, 0.05], [0.1, 0.2, 0.7])
    assert spans(probabilities, 1, 3) == [(0, 2)]
    assert spans(probabilities, 1, 2) == [(0, 1)]
    assert spans(probabilities, 1, 1) == [(0, 0)]


def test_a_start_whose_best_end_is_too_far_away_hides_no_other():
    assert spans(columns([0.6, 0.1, 0.1, 0.2], [0.01, 0.01, 0.01, 0.97]), 1, 3) == [(3, 3)]


def test_of_equal_spans_the_earlier_and_shorter_comes_first():
    assert spans(columns([0.5, 0.5], [0.5, 0.5]), 9, 15) == [(0, 0), (0, 1), (1, 1)]
    assert spans(columns([0.5, 0.5], [0.5, 0.5]), 2, 15) == [(0, 0), (0, 1)]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20),
    st.integers(1, 30),
    st.integers(1, 25),
)
def test_the_search_finds_what_trying_every_span_finds(rows, count, max_length):
    probabilities = np.array(rows, np.float32) / 4  # products are exact, and ties abound
    number = len(rows)
    every = [(start, end) for start in range(number) for end in range(start, min(number, start + max_length))]
    every.sort(key=lambda span: (-probabilities[span[0], 0] * probabilities[span[1], 1], *span))
    found = best_spans(probabilities, count, max_length)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == every[:count]
    assert found.scores.tolist() == [probabilities[start, 0] * probabilities[end, 1] for start, end in every[:count]]


# --- words ------------------------------------------------------------------------------------------------------------

OFFSETS = [(0, 2), (2, 4), (4, 5), (6, 9), (9, 12)]
WORDS = [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("first", "last", "span"), [(0, 0, (0, 5)), (1, 1, (0, 5)), (2, 2, (0, 5)), (1, 3, (0, 12)), (3, 3, (6, 12)), (4, 4, (6, 12))]
)
def test_a_span_grows_to_whole_words(first, last, span):
    assert whole_words(OFFSETS, WORDS, first, last) == span


@pytest.mark.parametrize(("first", "last", "span"), [(1, 1, (2, 4)), (1, 3, (2, 9)), (0, 1, (0, 4)), (3, 3, (4, 12))])
def test_a_span_that_begins_or_ends_outside_any_word_stays_as_it_is(first, last, span):
    assert whole_words(OFFSETS, [0, None, 1, 1, 1], first, last) == span


# --- answers that read the same -----------------------------------------------------------------------------------------


def test_answers_that_read_the_same_become_the_first_with_the_sum_of_scores():
    merged = merge_answers([Answer("Paris", 0.5, 9, 14), Answer("Rome", 0.25, 0, 4), Answer("PARIS", 0.125, 40, 45)])
    assert merged == [Answer("Paris", 0.625, 9, 14), Answer("Rome", 0.25, 0, 4)]
