"""Which products of an int8 model stay fp32."""

from __future__ import annotations

import math

import pytest

from fastserve.errors import InvalidRequest
from fastserve.export.int8_choice import choose_kept, layers_of, least

COSTS = {"attn": 0.004, "mlp": 0.006, "head": 0.02}
SIZES = {"attn": 10, "mlp": 30, "head": 1000, "experts": 60}


def test_nothing_is_kept_of_a_model_that_loses_no_more_than_it_may() -> None:
    choice = choose_kept(COSTS, SIZES, (), 3.1)
    assert choice.kept == ()
    assert choice.share == 0
    assert choice.rise == pytest.approx(math.expm1(0.03))


def test_what_costs_most_for_its_size_is_kept_first_and_no_more_than_needed() -> None:
    assert choose_kept(COSTS, SIZES, (), 3).kept == ("attn",)
    choice = choose_kept(COSTS, SIZES, (), 2.1)
    assert choice.kept == ("attn", "mlp")
    assert choice.share == pytest.approx(40 / 1100)
    assert choice.rise == pytest.approx(math.expm1(0.02))


def test_what_the_user_keeps_counts_and_what_is_left_may_be_enough() -> None:
    choice = choose_kept(COSTS, SIZES, ("head",), 1.1)
    assert choice.kept == ("head",)
    assert choice.rise == pytest.approx(math.expm1(0.01))


def test_products_make_up_for_what_the_cache_costs_but_for_half_of_what_is_allowed() -> None:
    choice = choose_kept(COSTS, SIZES, (), 3.1, cache_cost=0.004)
    assert choice.kept == ("attn",)
    assert (choice.rise, choice.cache_rise) == (pytest.approx(math.expm1(0.03)), pytest.approx(math.expm1(0.004)))
    for costly in (0.0205, 1.0):
        choice = choose_kept(COSTS, SIZES, (), 100 * math.expm1(0.041), cache_cost=costly)
        assert choice.kept == ("attn", "mlp")
        assert choice.rise == pytest.approx(math.expm1(0.02 + costly))
    assert choose_kept(COSTS, SIZES, (), 3.1, cache_cost=math.nan).measures()["expected_perplexity_rise_of_cache"] > 1e40


def test_products_of_unknown_cost_are_named_and_never_kept() -> None:
    choice = choose_kept(COSTS, SIZES, (), 0.1)
    assert choice.kept == ("attn", "mlp", "head")
    assert choice.unknown == ("experts",)


@pytest.mark.parametrize("cost", [math.nan, math.inf, 1e4])
def test_a_product_whose_cost_is_beyond_all_bounds_is_kept(cost: float) -> None:
    assert choose_kept(COSTS | {"mlp": cost}, SIZES, (), 3).kept == ("mlp",)


def test_a_bound_that_leaves_nothing_to_quantise_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"max_perplexity_rise: got 0\.1, allowed: more, .* all of 3 products"):
        choose_kept(COSTS, {name: SIZES[name] for name in COSTS}, (), 0.1)


def test_the_candidate_that_costs_all_products_least_is_taken() -> None:
    assert least([[1, 2, 5], [4, 2, 1]], 0) == 1
    assert least([], 2) == 2


def test_a_product_computes_the_layer_of_its_name_or_those_of_its_module_that_are_no_products() -> None:
    products = ["h.0.attn", "h.0.attn.out", "h.0.mlp", "h.0.mlp.down", "lm_head", "experts"]
    layers = ["h.0.attn.q", "h.0.attn.k", "h.0.attn.out", "h.0.mlp.gate", "h.0.mlp.up", "h.0.mlp.down", "other", "lm_head"]
    assert layers_of(products, layers) == {
        "h.0.attn": ["h.0.attn.q", "h.0.attn.k"],
        "h.0.attn.out": ["h.0.attn.out"],
        "h.0.mlp": ["h.0.mlp.gate", "h.0.mlp.up"],
        "h.0.mlp.down": ["h.0.mlp.down"],
        "lm_head": ["lm_head"],
    }
