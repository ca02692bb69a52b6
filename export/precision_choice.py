"""In how many bits the weights of each product are, so that a quantised model loses no more than it may.

A ladder: every product starts with as few bits as it may have; while the loss to expect is too large, the product goes up that
saves most nats for the bytes it adds, from 4 bits to 8, from 8 to fp32, or all the way. Greedy: what went up stays up.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from fastserve.errors import InvalidRequest
from fastserve.export.options import FP32, INT4, INT8

WEIGHT_BITS: Mapping[str, float] = {INT4: 4.5, INT8: 8.0, FP32: 32.0}
"""Of each precision, from the bottom of the ladder; 4 bits with the step and the offset that 32 weights share."""
Costs = Mapping[str, Mapping[str, float]]
"""By the name of a product: nats a token in each precision below fp32 that it may have."""
_MOST = 100.0
"""Nats a token: more, or what is no number, counts as that much."""


@dataclasses.dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """``precisions``: of every product by its name, in the graph's order. ``sizes``: their weights. ``rise``: the perplexity to
    expect, as a multiple of the source's, less 1. ``unknown``: names of products whose loss could not be estimated; they are
    int8. ``cache_rise``: what of ``rise`` the KV cache alone would cause."""

    precisions: Mapping[str, str]
    sizes: Mapping[str, int]
    rise: float
    unknown: tuple[str, ...]
    cache_rise: float = 0.0

    def products_in(self, precision: str) -> tuple[str, ...]:
        """Names, in the graph's order."""
        return tuple(name for name, chosen in self.precisions.items() if chosen == precision)

    def share(self, precision: str) -> float:
        """Of all products' weights, those in ``precision``."""
        return sum(self.sizes[name] for name in self.products_in(precision)) / sum(self.sizes.values())

    def measures(self) -> dict[str, float]:
        """For the manifest."""
        products = Counter(self.precisions.values())
        return {
            "expected_perplexity_rise": self.rise,
            "expected_perplexity_rise_of_cache": self.cache_rise,
            **{f"{precision}_products": float(products[precision]) for precision in WEIGHT_BITS},
            **{f"{precision}_weights_share": self.share(precision) for precision in WEIGHT_BITS},
            "products_of_unknown_loss": float(len(self.unknown)),
        }


def choose_precisions(
    costs: Costs,
    sizes: Mapping[str, int],
    named: Collection[str],
    max_perplexity_rise: float,
    *,
    cache_cost: float = 0.0,
) -> PrecisionChoice:
    """``costs``: of the products for which they are known; ``sizes``: weights of every product; ``named``: those that are fp32 in
    any case; ``max_perplexity_rise``: percent; ``cache_cost``: what the KV cache costs, which products make up for: but for half
    of what is allowed, because a cache in fp16 is the cheaper way to gain more.

    Raises InvalidRequest when every product would be fp32.
    """
    known = {name: {**{precision: _bounded(cost) for precision, cost in each.items()}, FP32: 0.0} for name, each in costs.items()}
    cache_cost = _bounded(cache_cost)
    counted = min(cache_cost, math.log1p(max_perplexity_rise / 100) / 2)
    chosen = {name: FP32 if name in named else _fewest_bits(known.get(name, {INT8: 0.0})) for name in sizes}
    while _rise(known, chosen, counted) * 100 > max_perplexity_rise and (step := _best_step(known, sizes, chosen)) is not None:
        name, precision = step
        chosen[name] = precision
    if all(precision == FP32 for precision in chosen.values()):
        allowed = f"more, or fewer names in keep_fp32: all of {len(sizes)} products would stay fp32"
        raise InvalidRequest("max_perplexity_rise", max_perplexity_rise, allowed)
    return PrecisionChoice(
        precisions=chosen,
        sizes=sizes,
        rise=_rise(known, chosen, cache_cost),
        unknown=tuple(name for name in sizes if name not in costs and name not in named),
        cache_rise=math.expm1(cache_cost),
    )


def _fewest_bits(precisions: Collection[str]) -> str:
    return min(precisions, key=WEIGHT_BITS.__getitem__)


def _best_step(known: Costs, sizes: Mapping[str, int], chosen: Mapping[str, str]) -> tuple[str, str] | None:
    """The product, and its next precision, that saves most for what it adds; None when all are fp32."""
    gains = {
        (name, higher): (each[chosen[name]] - cost) / (sizes[name] * (WEIGHT_BITS[higher] - WEIGHT_BITS[chosen[name]]))
        for name, each in known.items()
        for higher, cost in each.items()
        if WEIGHT_BITS[higher] > WEIGHT_BITS[chosen[name]]
    }
    return max(gains, key=gains.__getitem__, default=None)


def _bounded(cost: float) -> float:
    return min(cost, _MOST) if math.isfinite(cost) else _MOST


def _rise(known: Costs, chosen: Mapping[str, str], cache_cost: float) -> float:
    return math.expm1(min(math.fsum(each[chosen[name]] for name, each in known.items()) + cache_cost, _MOST))


def least(costs: Sequence[Sequence[float]], usual: int) -> int:
    """Which candidate costs least in all. ``costs``: of each product, by candidate; ``usual``: the answer for none."""
    sums = [math.fsum(each) for each in zip(*costs, strict=True)]
    return min(range(len(sums)), key=sums.__getitem__) if sums else usual


def layers_of(products: Sequence[str], layers: Sequence[str]) -> dict[str, list[str]]:
    """The linear layers that each product computes, by their names: the one of its name, or, where several became one product,
    those of its module that are no products themselves. Products without any are missing."""
    known = set(products)
    found = {product: [product] for product in products if product in set(layers)}
    for layer in layers:
        module = layer.rpartition(".")[0]
        if layer not in known and module in known and module not in set(layers):
            found.setdefault(module, []).append(layer)
    return found
