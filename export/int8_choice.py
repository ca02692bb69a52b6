"""Which products of a model stay fp32, so that its int8 form loses no more than it may."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from fastserve.errors import InvalidRequest

_MOST = 100.0
"""Nats a token: more, or what is no number, counts as that much."""


@dataclasses.dataclass(frozen=True, slots=True)
class Int8Choice:
    """``kept``: names of the products that stay fp32, in the graph's order. ``share``: of all products' weights, theirs.
    ``rise``: the perplexity to expect, as a multiple of the source's, less 1. ``unknown``: names of products whose loss could
    not be estimated; they are int8. ``cache_rise``: what of ``rise`` the KV cache alone would cause."""

    kept: tuple[str, ...]
    share: float
    rise: float
    unknown: tuple[str, ...]
    cache_rise: float = 0.0

    def measures(self) -> dict[str, float]:
        """For the manifest."""
        return {
            "expected_perplexity_rise": self.rise,
            "expected_perplexity_rise_of_cache": self.cache_rise,
            "fp32_weights_share": self.share,
            "products_of_unknown_loss": float(len(self.unknown)),
        }


def choose_kept(
    costs: Mapping[str, float],
    sizes: Mapping[str, int],
    named: Collection[str],
    max_perplexity_rise: float,
    *,
    cache_cost: float = 0.0,
) -> Int8Choice:
    """``costs``: what int8 costs each product, nats a token, where that is known; ``sizes``: weights of every product; ``named``:
    those that stay fp32 anyway; ``max_perplexity_rise``: percent; ``cache_cost``: what the KV cache costs, which products make up
    for: but for half of what is allowed, because a cache in fp16 is the cheaper way to gain more.

    What costs most for its size is kept first, since fp32 takes four times the memory and about as much of the time of one token.
    Raises InvalidRequest when nothing would be int8.
    """
    costs = {name: _bounded(cost) for name, cost in costs.items()}
    cache_cost = _bounded(cache_cost)
    counted = min(cache_cost, math.log1p(max_perplexity_rise / 100) / 2)
    kept = set(named)
    rise = _rise(costs, kept, counted)
    for name in sorted(costs, key=lambda name: costs[name] / sizes[name], reverse=True):
        if rise * 100 <= max_perplexity_rise:
            break
        kept.add(name)
        rise = _rise(costs, kept, counted)
    if len(kept) == len(sizes):
        allowed = f"more, or fewer names in keep_fp32: all of {len(sizes)} products would stay fp32"
        raise InvalidRequest("max_perplexity_rise", max_perplexity_rise, allowed)
    return Int8Choice(
        kept=tuple(name for name in sizes if name in kept),
        share=sum(sizes[name] for name in kept) / sum(sizes.values()),
        rise=_rise(costs, kept, cache_cost),
        unknown=tuple(name for name in sizes if name not in costs and name not in kept),
        cache_rise=math.expm1(cache_cost),
    )


def _bounded(cost: float) -> float:
    return min(cost, _MOST) if math.isfinite(cost) else _MOST


def _rise(costs: Mapping[str, float], kept: Collection[str], cache_cost: float) -> float:
    return math.expm1(min(math.fsum(cost for name, cost in costs.items() if name not in kept) + cache_cost, _MOST))


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
