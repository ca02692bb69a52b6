"""int8 and int4 of a decoder: what must be known of the source before it is gone, how many bits each product gets, and the
graph's rewrite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.errors import InvalidRequest
from fastserve.export.channel_peaks import channel_peaks
from fastserve.export.encoders.sample_texts import SAMPLE_TEXTS
from fastserve.export.int8_cache import cache_cost
from fastserve.export.options import INT4, INT8, MAX_PERPLEXITY_RISE, ExportOptions
from fastserve.export.precision_choice import Costs, PrecisionChoice, choose_precisions, layers_of, least
from fastserve.export.prose import CALIBRATION_PROSE
from fastserve.export.quality import SourceQuality, read_text, source_quality
from fastserve.export.quantization_cost import (
    Rounding,
    divergences,
    linear_layers,
    measured_divergence,
    rounded_layers,
    shifts,
)
from fastserve.export.rewrites.packed_products import constant_products, is_looked_up
from fastserve.export.rewrites.quantization import quantize_products
from fastserve.export.rewrites.smoothing import FloatArray, Peaks, Smoothing, find_smoothings, module_of, num_inputs, smooth
from fastserve.export.source import LoadedModel

ALPHAS = (0.5, 0.6, 0.7)
"""What is tried of each smoothing; the first is that of SmoothQuant's paper."""
USUAL = 0
"""Of what is tried: where nothing is known of the readers."""
_PIECE = 512
"""Tokens that go forward and back at once; logits of the whole vocabulary are in memory for each."""
_PIECES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizationGround:
    """``peaks``: see :func:`~fastserve.export.channel_peaks.channel_peaks`. ``calibration``: token ids of texts. ``cache_cost``:
    nats a token that the KV cache costs."""

    peaks: Peaks
    calibration: list[list[int]]
    quality: SourceQuality
    cache_cost: float


def prepare_quantization(
    loaded: LoadedModel, options: ExportOptions, max_model_len: int, kv_cache_dtype: str
) -> QuantizationGround:
    """Run the source over texts. ``kv_cache_dtype``: that the model will be served with. Raises InvalidRequest for a text that
    cannot be read, ToolError for one too short."""
    known = loaded.model.get_input_embeddings().weight.shape[0]  # a tokenizer may have more ids than the model has rows

    def tokens_of(text: str) -> list[int]:
        return [token for token in loaded.tokenizer(text, verbose=False)["input_ids"] if token < known]

    quality = source_quality(loaded.model, tokens_of(read_text(options.quality_text)), max_model_len)
    texts = [tokens[:max_model_len] for text in SAMPLE_TEXTS if (tokens := tokens_of(text))]
    prose, length = tokens_of(CALIBRATION_PROSE), min(max_model_len, _PIECE)
    pieces = [prose[begin : begin + length] for begin in range(0, len(prose), length)]
    cost = cache_cost(loaded.model, pieces[:_PIECES]) if kv_cache_dtype == "int8" else 0.0
    return QuantizationGround(channel_peaks(loaded.model, texts + pieces), pieces[:_PIECES], quality, cost)


def quantize_decoder(graph_model: ir.Model, model: Any, ground: QuantizationGround, options: ExportOptions) -> PrecisionChoice:
    """Every product with a constant weight, the head and a tied embedding among them, in the fewest bits it may have
    (:func:`_precisions_of`), but those that the options keep in fp32 and those that need more to keep the loss within them.

    ``model``: the source. Raises InvalidRequest for a name that no product has and for a loss that leaves nothing to quantise,
    UnsupportedModel as ``quantize_products``.
    """
    graph = graph_model.graph
    products: dict[str, list[ir.Node]] = {}
    for product in constant_products(graph):
        products.setdefault(_name(product, model), []).append(product)
    named = _named_by_user(list(products), options.keep_fp32 or ())
    estimate = _Estimate(products, model, ground.calibration, options.dtype)
    costs, factors = _smooth_best(graph, products, estimate, ground.peaks)
    if options.dtype == INT4:
        costs = estimate.as_measured(costs, factors, named)
    RemoveUnusedNodesPass()(graph_model)
    sizes = {name: sum(map(_size, found)) for name, found in products.items()}
    allowed = options.max_perplexity_rise or MAX_PERPLEXITY_RISE[options.dtype]
    choice = choose_precisions(costs, sizes, named, allowed, cache_cost=ground.cache_cost)
    for precision in (INT4, INT8):
        chosen = [product for name in choice.products_in(precision) for product in products[name]]
        quantize_products(graph, chosen, precision)
    RemoveUnusedNodesPass()(graph_model)
    return choice


def _name(product: ir.Node, model: Any) -> str:
    """Of the source's module. The head of a model whose embedding is its weight is a node without one."""
    if "/" in (product.name or "") or not product.outputs[0].is_graph_output():
        return module_of(product)
    return _head(model) or module_of(product)


def _head(model: Any) -> str | None:
    """Name of the module that makes the logits."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _named_by_user(names: Sequence[str], parts: Sequence[str]) -> set[str]:
    for part in parts:
        if not any(part in name for name in names):
            raise InvalidRequest("keep_fp32", part, f"a part of the name of a module: {', '.join(sorted(names))}")
    return {name for name in names if any(part in name for part in parts)}


class _Estimate:
    """What rounding costs each product. ``precisions``: those below fp32 that a product may have, from the fewest bits, by its
    name; products that no linear layers of the source were found for are missing."""

    def __init__(self, products: Mapping[str, list[ir.Node]], model: Any, texts: list[list[int]], dtype: str) -> None:
        self._model, self._texts = model, texts
        self._layers = layers_of(list(products), list(linear_layers(model)))
        head = _head(model)
        self.precisions = {name: _precisions_of(products[name], dtype, is_head=name == head) for name in self._layers}

    def of(self, tried: Mapping[str, Sequence[FloatArray]]) -> dict[str, dict[str, list[float]]]:
        """Nats a token with each of the factors [k] of smoothing that are ``tried``, by the product and its precisions. Products
        of layers that were given nothing are missing."""
        roundings = {
            name: [Rounding(precision, torch.from_numpy(each)) for precision in self.precisions[name] for each in factors]
            for name, factors in tried.items()
        }
        of_layers = {layer: roundings[name] for name in tried for layer in self._layers[name]}
        moved, num_tokens = shifts(self._model, self._texts, of_layers), sum(map(len, self._texts))
        found = {}
        for name, factors in tried.items():
            if all(layer in moved for layer in self._layers[name]):
                costs = iter(divergences([moved[layer] for layer in self._layers[name]], num_tokens))
                found[name] = {precision: [next(costs) for _ in factors] for precision in self.precisions[name]}
        return found

    def as_measured(self, costs: Costs, factors: Mapping[str, FloatArray], named: Collection[str]) -> Costs:
        """``costs``, those of 4 bits larger by what the source with its products in the fewest bits diverges more than they say:
        the estimate is of second order, and errors of 4 bits are not small. ``factors`` [k]: of smoothing, by product; ``named``:
        products that stay fp32. Lookups in an embedding that is the head's weight are not rounded here."""
        fewest = {name: self.precisions[name][0] for name in costs if name not in named}
        roundings = {
            layer: Rounding(precision, torch.from_numpy(factors[name]))
            for name, precision in fewest.items()
            for layer in self._layers[name]
        }
        measured = measured_divergence(self._model, self._texts, lambda: rounded_layers(self._model, roundings))
        in_4_bits = math.fsum(costs[name][INT4] for name, precision in fewest.items() if precision == INT4)
        others = math.fsum(costs[name][precision] for name, precision in fewest.items() if precision != INT4)
        if not math.isfinite(measured):
            more = math.inf
        else:
            more = max(1.0, (measured - others) / in_4_bits) if in_4_bits else 1.0
        return {name: {**each, **({INT4: more * each[INT4]} if INT4 in each else {})} for name, each in costs.items()}


def _precisions_of(products: Sequence[ir.Node], dtype: str, *, is_head: bool) -> tuple[str, ...]:
    """The head in 4 bits costs more than all else together (of SmolLM2), and rows of an embedding are looked up in 8."""
    if dtype == INT8 or is_head or any(is_looked_up(product) for product in products):
        return (INT8,)
    return (INT4, INT8)


def _smooth_best(
    graph: ir.Graph, products: dict[str, list[ir.Node]], estimate: _Estimate, peaks: Peaks
) -> tuple[Costs, dict[str, FloatArray]]:
    """Smooth by the factors that cost the readers least, each in the fewest bits it may have. Returns what the precisions then
    cost, as ``choose_precisions`` reads it, and the factors [k], by product."""
    names = {id(product): name for name, found in products.items() for product in found}
    tried = {name: [np.ones(num_inputs(products[name][0]), np.float32)] for name in estimate.precisions}
    smoothings: list[tuple[Smoothing, list[str], list[FloatArray]]] = []
    for smoothing in find_smoothings(graph, peaks):
        readers = [name for name in {names[id(product)]: None for product in smoothing.products} if name in tried]
        candidates = _candidates(smoothing, in_4_bits=any(INT4 in estimate.precisions[name] for name in readers))
        tried |= dict.fromkeys(readers, candidates)
        smoothings.append((smoothing, readers, candidates))
    found = estimate.of(tried)
    best = dict.fromkeys(found, 0)
    for smoothing, readers, candidates in smoothings:
        known = [name for name in readers if name in found]
        place = least([found[name][estimate.precisions[name][0]] for name in known], USUAL)
        smooth(graph, smoothing, candidates[place])
        best |= dict.fromkeys(known, place)
    costs = {name: {precision: each[best[name]] for precision, each in of.items()} for name, of in found.items()}
    return costs, {name: tried[name][place] for name, place in best.items()}


def _candidates(smoothing: Smoothing, *, in_4_bits: bool) -> list[FloatArray]:
    """Factors [k]. A channel that is large in a weight takes levels from those that share its block of 4 bits, so that smoothing
    half as much, or not at all, may cost less."""
    if not in_4_bits:
        return [smoothing.factors(alpha) for alpha in ALPHAS]
    usual = smoothing.factors(ALPHAS[USUAL])
    return [usual, np.sqrt(usual), np.ones_like(usual)]


def _size(product: ir.Node) -> int:
    """Weights."""
    weight = product.inputs[1]
    assert weight is not None and weight.const_value is not None
    return math.prod(weight.const_value.shape.numpy())
