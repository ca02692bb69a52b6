"""How a text is cut into windows to be scored, and what their scores come to."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from fastserve.errors import ToolError
from fastserve.export.perplexity import LONGEST_WINDOW, cut_text, perplexity, window_length


@pytest.mark.parametrize("length", [2, 3, 8, 9])
@pytest.mark.parametrize("num_tokens", range(2, 40))
def test_every_token_but_the_first_is_scored_once_in_order(num_tokens: int, length: int) -> None:
    scored = [token for window in cut_text(range(num_tokens), length) for token in window.token_ids[window.num_context :]]
    assert scored == list(range(1, num_tokens))


@pytest.mark.parametrize("length", [2, 3, 8, 9])
@pytest.mark.parametrize("num_tokens", range(2, 40))
def test_a_window_holds_neighbours_only_and_has_something_to_score(num_tokens: int, length: int) -> None:
    for window in cut_text(range(num_tokens), length):
        first = window.token_ids[0]
        assert window.token_ids == tuple(range(first, first + len(window.token_ids)))
        assert window.num_scored >= 1 and len(window.token_ids) <= length


@pytest.mark.parametrize("length", [2, 3, 8, 9])
def test_after_the_first_window_a_token_has_at_least_half_a_window_before_it(length: int) -> None:
    first, *others = cut_text(range(40), length)
    assert (first.num_context, len(first.token_ids)) == (1, length)
    assert {window.num_context for window in others} == {length // 2}


def test_the_windows_of_a_small_text_are_these() -> None:
    windows = [(window.token_ids, window.num_context, window.num_scored) for window in cut_text(range(7), 4)]
    assert windows == [((0, 1, 2, 3), 1, 3), ((2, 3, 4, 5), 2, 2), ((4, 5, 6), 2, 1)]


@pytest.mark.parametrize("num_tokens", [2, 7, 8])
def test_a_text_that_fits_is_one_window(num_tokens: int) -> None:
    (window,) = cut_text(range(num_tokens), 8)
    assert window.token_ids == tuple(range(num_tokens))


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_text_without_a_token_to_predict_is_refused(num_tokens: int) -> None:
    with pytest.raises(ToolError, match=rf"the text has {num_tokens} tokens, allowed: at least 2"):
        cut_text(range(num_tokens), 8)


def test_a_window_is_as_long_as_the_model_takes_up_to_a_limit() -> None:
    assert window_length(256) == 256
    assert window_length(1_000_000) == LONGEST_WINDOW == 1024


def test_perplexity_is_the_number_of_equally_likely_tokens() -> None:
    assert perplexity(np.log([0.25, 0.25, 0.25])) == pytest.approx(4)
    assert perplexity(np.log([0.5, 0.125])) == pytest.approx(4)


def test_perplexity_of_what_cannot_be_is_no_ordinary_number() -> None:
    assert perplexity(np.array([-1e6])) == math.inf
    assert perplexity(np.array([-math.inf, 0.0])) == math.inf
    assert math.isnan(perplexity(np.array([math.nan, 0.0])))


def test_the_served_part_needs_no_torch() -> None:
    code = "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\nimport fastserve.export.perplexity"
    subprocess.run([sys.executable, "-c", code], check=True)
