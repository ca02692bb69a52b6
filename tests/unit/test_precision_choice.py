"""Which products of a quantised model get more bits than the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from fastserve.errors import InvalidRequest
from fastserve.export.precision_choice import PrecisionChoice, choose_precisions, layers_of, least

IN_8_BITS = {"attn": {"int8": 0.004}, "mlp": {"int8": 0.006}, "head": {"int8": 0.02}}
SIZES = {"attn": 10, "mlp": 30, "head": 1000, "experts": 60}
IN_4_BITS = {"attn": {"int4": 0.04, "int8": 0.004}, "mlp": {"int4": 0.06, "int8": 0.006}, "head": {"int8": 0.002}}
"""Of the sizes above, 8 bits of attn save 0.036 for 35 bits, of mlp 0.054 for 105; fp32 then 0.004 for 240, 0.006 for 720."""


def choose(
    costs: Mapping[str, Mapping[str, float]],
    nats: float,
    *named: str,
    sizes: Mapping[str, int] = SIZES,
    cache_cost: float = 0.0,
) -> PrecisionChoice:
    """``nats``: the largest sum of costs."""
    return choose_precisions(costs, sizes, named, 100 * math.expm1(nats), cache_cost=cache_cost)


def precisions(*args: Any, **settings: Any) -> str:
    """Of attn, mlp and head, a digit each: 4, 8, or 3 for fp32."""
    found = choose(*args, **settings).precisions
    return "".join({"int4": "4", "int8": "8", "fp32": "3"}[found[name]] for name in ("attn", "mlp", "head"))


def test_nothing_is_kept_of_a_model_that_loses_no_more_than_it_may() -> None:
    choice = choose(IN_8_BITS, 0.0301)
    assert set(choice.precisions.values()) == {"int8"}
    assert choice.share("int8") == 1
    assert choice.rise == pytest.approx(math.expm1(0.03))


def test_what_costs_most_for_its_size_is_kept_first_and_no_more_than_needed() -> None:
    assert choose(IN_8_BITS, 0.0299).products_in("fp32") == ("attn",)
    choice = choose(IN_8_BITS, 0.0201)
    assert choice.products_in("fp32") == ("attn", "mlp")
    assert choice.share("fp32") == pytest.approx(40 / 1100)
    assert choice.rise == pytest.approx(math.expm1(0.02))


@pytest.mark.parametrize(
    ("nats", "expected"),
    [
        (0.103, "448"),
        (0.101, "848"),
        (0.065, "888"),  # 8 bits of mlp save more for each bit than fp32 of attn
        (0.011, "388"),
        (0.007, "338"),
        (0.001, "333"),
    ],
)
def test_products_go_up_from_4_bits_to_8_and_to_fp32_as_each_bit_saves_most(nats: float, expected: str) -> None:
    assert precisions(IN_4_BITS, nats) == expected


def test_a_product_skips_8_bits_where_fp32_saves_more_for_each_bit() -> None:
    cheap = IN_4_BITS | {"attn": {"int4": 0.001, "int8": 0.0005}}
    assert precisions(cheap | {"mlp": {"int4": 0.06, "int8": 0.059}}, 0.01) == "438"
    assert precisions(cheap | {"mlp": {"int4": 0.06, "int8": 0.061}}, 0.01) == "438"


def test_shares_count_weights_and_products_are_counted() -> None:
    choice = choose(IN_4_BITS, 0.065, "attn")
    assert choice.precisions == {"attn": "fp32", "mlp": "int4", "head": "int8", "experts": "int8"}
    measures = choice.measures()
    assert {name: measures[f"{name}_products"] for name in ("int4", "int8", "fp32")} == {"int4": 1, "int8": 2, "fp32": 1}
    assert measures["int4_weights_share"] == pytest.approx(30 / 1100)
    assert measures["int8_weights_share"] == pytest.approx(1060 / 1100)
    assert measures["fp32_weights_share"] == pytest.approx(10 / 1100)


@pytest.mark.parametrize("costs", [IN_8_BITS, IN_4_BITS])
def test_what_the_user_keeps_counts_and_what_is_left_may_be_enough(costs: Mapping[str, Mapping[str, float]]) -> None:
    left = math.fsum(next(iter(costs[name].values())) for name in ("attn", "mlp"))
    choice = choose(costs, left + 0.0001, "head")
    assert choice.products_in("fp32") == ("head",)
    assert choice.rise == pytest.approx(math.expm1(left))


def test_products_make_up_for_what_the_cache_costs_but_for_half_of_what_is_allowed() -> None:
    choice = choose(IN_8_BITS, 0.0301, cache_cost=0.004)
    assert choice.products_in("fp32") == ("attn",)
    assert (choice.rise, choice.cache_rise) == (pytest.approx(math.expm1(0.03)), pytest.approx(math.expm1(0.004)))
    for costly in (0.0205, 1.0):
        choice = choose(IN_8_BITS, 0.041, cache_cost=costly)
        assert choice.products_in("fp32") == ("attn", "mlp")
        assert choice.rise == pytest.approx(math.expm1(0.02 + costly))
    assert choose(IN_8_BITS, 0.0301, cache_cost=math.nan).measures()["expected_perplexity_rise_of_cache"] > 1e40


@pytest.mark.parametrize("costs", [IN_8_BITS, IN_4_BITS])
def test_products_of_unknown_cost_are_named_and_in_8_bits(costs: Mapping[str, Mapping[str, float]]) -> None:
    choice = choose(costs, 0.001)
    assert choice.products_in("fp32") == ("attn", "mlp", "head")
    assert choice.products_in("int8") == choice.unknown == ("experts",)
    assert choose(costs, 1, "experts").unknown == ()


@pytest.mark.parametrize("cost", [math.nan, math.inf, 1e4])
def test_a_product_whose_cost_is_beyond_all_bounds_is_kept(cost: float) -> None:
    assert choose(IN_8_BITS | {"mlp": {"int8": cost}}, 0.0299).products_in("fp32") == ("mlp",)
    assert precisions(IN_4_BITS | {"mlp": {"int4": cost, "int8": cost}}, 0.05) == "438"


@pytest.mark.parametrize("costs", [IN_8_BITS, IN_4_BITS])
def test_a_bound_that_leaves_nothing_to_quantise_is_refused(costs: Mapping[str, Mapping[str, float]]) -> None:
    with pytest.raises(InvalidRequest, match=r"max_perplexity_rise: got .*, allowed: more, .* all of 3 products"):
        choose(costs, 0.001, sizes={name: SIZES[name] for name in costs})


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
