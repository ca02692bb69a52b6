"""int8 of a decoder: what must be known of the source before it is gone, which products are worth it, and the graph's rewrite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.errors import InvalidRequest
from fastserve.export.channel_peaks import channel_peaks
from fastserve.export.encoders.sample_texts import SAMPLE_TEXTS
from fastserve.export.int8_cache import cache_cost
from fastserve.export.int8_choice import Int8Choice, choose_kept, layers_of, least
from fastserve.export.int8_simulation import divergence, linear_layers, shifts
from fastserve.export.options import MAX_PERPLEXITY_RISE, ExportOptions
from fastserve.export.prose import CALIBRATION_PROSE
from fastserve.export.quality import SourceQuality, read_text, source_quality
from fastserve.export.rewrites.packed_products import constant_products
from fastserve.export.rewrites.quantization import quantize_products
from fastserve.export.rewrites.smoothing import Peaks, find_smoothings, module_of, num_inputs, smooth
from fastserve.export.source import LoadedModel

ALPHAS = (0.5, 0.6, 0.7)
"""What is tried of each smoothing."""
USUAL = ALPHAS.index(0.5)
"""That of SmoothQuant's paper."""
_PIECE = 512
"""Tokens that go forward and back at once; logits of the whole vocabulary are in memory for each."""
_PIECES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Int8Ground:
    """``peaks``: see :func:`~fastserve.export.channel_peaks.channel_peaks`. ``calibration``: token ids of texts. ``cache_cost``:
    nats a token that the KV cache costs."""

    peaks: Peaks
    calibration: list[list[int]]
    quality: SourceQuality
    cache_cost: float


def prepare_int8(loaded: LoadedModel, options: ExportOptions, max_model_len: int, kv_cache_dtype: str) -> Int8Ground:
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
    return Int8Ground(channel_peaks(loaded.model, texts + pieces), pieces[:_PIECES], quality, cost)


def quantize_decoder(graph_model: ir.Model, model: Any, ground: Int8Ground, options: ExportOptions) -> Int8Choice:
    """Every product with a constant weight, the head and a tied embedding among them, but those that the options name and those
    that it takes to keep the loss within them.

    ``model``: the source. Raises InvalidRequest for a name that no product has and for a loss that leaves nothing to quantise,
    UnsupportedModel as ``quantize_products``.
    """
    graph = graph_model.graph
    products: dict[str, list[ir.Node]] = {}
    for product in constant_products(graph):
        products.setdefault(_name(product, model), []).append(product)
    named = _named_by_user(list(products), options.keep_fp32 or ())
    costs = _smooth_best(graph, products, model, ground)
    RemoveUnusedNodesPass()(graph_model)
    sizes = {name: sum(map(_size, found)) for name, found in products.items()}
    choice = choose_kept(costs, sizes, named, options.max_perplexity_rise or MAX_PERPLEXITY_RISE, cache_cost=ground.cache_cost)
    quantize_products(graph, [product for name in products if name not in choice.kept for product in products[name]])
    RemoveUnusedNodesPass()(graph_model)
    return choice


def _name(product: ir.Node, model: Any) -> str:
    """Of the source's module. The head of a model whose embedding is its weight is a node without one."""
    if "/" in (product.name or "") or not product.outputs[0].is_graph_output():
        return module_of(product)
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), module_of(product))


def _named_by_user(names: Sequence[str], parts: Sequence[str]) -> set[str]:
    for part in parts:
        if not any(part in name for name in names):
            raise InvalidRequest("keep_fp32", part, f"a part of the name of a module: {', '.join(sorted(names))}")
    return {name for name in names if any(part in name for part in parts)}


def _smooth_best(graph: ir.Graph, products: dict[str, list[ir.Node]], model: Any, ground: Int8Ground) -> dict[str, float]:
    """Smooth by the alphas that cost least. Returns what int8 then costs in nats a token, by the name of the product; those
    that no linear layers of the source were found for are missing."""
    smoothings = find_smoothings(graph, ground.peaks)
    names = {id(product): name for name, found in products.items() for product in found}
    factors = {name: [torch.ones(num_inputs(found[0]))] for name, found in products.items()}
    for smoothing in smoothings:
        tried = [torch.from_numpy(smoothing.factors(alpha)) for alpha in ALPHAS]
        factors |= {names[id(product)]: tried for product in smoothing.products}
    layers = layers_of(list(products), list(linear_layers(model)))
    moved = shifts(model, ground.calibration, {layer: factors[name] for name, found in layers.items() for layer in found})
    num_tokens = sum(map(len, ground.calibration))
    costs = {
        name: divergence(torch.stack([moved[layer] for layer in found]).sum(0), num_tokens)
        for name, found in layers.items()
        if all(layer in moved for layer in found)
    }
    chosen = dict.fromkeys(costs, 0)
    for smoothing in smoothings:
        readers = [name for name in {names[id(product)]: None for product in smoothing.products} if name in costs]
        best = least([costs[name] for name in readers], USUAL)
        smooth(graph, smoothing, ALPHAS[best])
        chosen |= dict.fromkeys(readers, best)
    return {name: costs[name][place] for name, place in chosen.items()}


def _size(product: ir.Node) -> int:
    """Weights."""
    weight = product.inputs[1]
    assert weight is not None and weight.const_value is not None
    return math.prod(weight.const_value.shape.numpy())
