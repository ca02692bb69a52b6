"""What rounding is said to cost, held against what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from fastserve.export.quantization_cost import (
    Rounding,
    divergences,
    linear_layers,
    measured_divergence,
    rounded_layers,
    rounded_product,
    shifts,
)
from fastserve.worker.kernels.int4_weight import rounded_to_int4
from fastserve.worker.kernels.quantized_weight import quantize_channels

TOKENS = torch.randint(0, 61, (200,), generator=torch.Generator().manual_seed(3)).tolist()


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def unsmoothed(layer: torch.nn.Linear, precision: str) -> Rounding:
    return Rounding(precision, torch.ones(layer.in_features))


def measured(source: LlamaForCausalLM, chosen: list[str], precision: str) -> float:
    """Nats a token by which the predictions diverge when the layers ``chosen`` are rounded."""
    roundings = {name: unsmoothed(linear_layers(source)[name], precision) for name in chosen}
    return measured_divergence(source, [TOKENS], lambda: rounded_layers(source, roundings))


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("part", ["lm_head", "layers.0.mlp.down_proj", "self_attn", ""])
def test_the_estimate_is_close_to_the_divergence_that_rounding_causes(part: str, precision: str) -> None:
    source = model()
    chosen = [name for name in linear_layers(source) if part in name]
    found = shifts(source, [TOKENS], {name: [unsmoothed(linear_layers(source)[name], precision)] for name in chosen})
    expected = sum(divergences([shift], len(TOKENS))[0] for shift in found.values())
    assert expected == pytest.approx(measured(source, chosen, precision), rel=0.5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_candidates_are_told_apart_and_the_model_is_left_as_it_was(precision: str) -> None:
    source = model()
    name = "model.layers.0.mlp.down_proj"
    layer = linear_layers(source)[name]
    uneven = Rounding(precision, torch.logspace(-3, 3, layer.in_features))
    found = shifts(source, [TOKENS[:90], TOKENS[90:]], {name: [unsmoothed(layer, precision), uneven]})
    assert found[name].shape == (2, len(TOKENS))
    even_cost, uneven_cost = divergences([found[name]], len(TOKENS))
    assert uneven_cost > 10 * even_cost
    assert all(parameter.requires_grad and parameter.grad is None for parameter in source.parameters())
    assert not any(module._forward_hooks for module in source.modules())


def test_rounded_layers_compute_rounded_products_and_the_model_is_left_as_it_was() -> None:
    source = model()
    layer = source.lm_head
    rounding = Rounding("int4", torch.linspace(0.5, 2, layer.in_features))
    rows = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    exact = layer(rows)
    with rounded_layers(source, {"lm_head": rounding}):
        got = layer(rows)
    assert torch.equal(got, rounded_product(layer, rounding, rows))
    assert torch.equal(layer(rows), exact)


def test_layers_that_are_one_product_add_up_before_they_are_squared() -> None:
    source = model()
    names = [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")]
    found = shifts(source, [TOKENS], {name: [unsmoothed(linear_layers(source)[name], "int4")] for name in names})
    gate, up = (found[name] for name in names)
    together = float((gate + up).double().square().sum() / (2 * len(TOKENS)))
    assert divergences([gate, up], len(TOKENS)) == [pytest.approx(together)]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("convolution", [False, True])
def test_products_are_rounded_as_the_kernel_rounds_them(convolution: bool, precision: str) -> None:
    layer = Conv1D(5, 48) if convolution else torch.nn.Linear(48, 5)
    weight = (layer.weight if convolution else layer.weight.T).detach()  # [k, n]
    rounding = Rounding(precision, torch.linspace(0.5, 2, 48))
    rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = rounded_product(layer, rounding, rows)
    scaled = (weight * rounding.factors[:, None]).numpy()
    quantized, scale = quantize_channels(scaled)
    matrix = rounded_to_int4(scaled) if precision == "int4" else quantized * scale
    levels = (rows / rounding.factors).numpy()
    peaks = np.abs(levels).max(axis=1, keepdims=True) / 127
    expected = np.rint(levels / peaks) * peaks @ matrix
    torch.testing.assert_close(got - layer.bias.detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    assert not torch.equal(got, linear(rows, weight.T, layer.bias))
