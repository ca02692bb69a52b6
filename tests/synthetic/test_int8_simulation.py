"""What int8 is said to cost, held against what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from fastserve.export.int8_simulation import divergence, linear_layers, rounded_product, shifts
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


def no_factors(layer: torch.nn.Linear) -> torch.Tensor:
    return torch.ones(layer.in_features)


def measured(source: LlamaForCausalLM, chosen: list[str]) -> float:
    """Nats a token by which the predictions diverge when the layers ``chosen`` are rounded."""
    with torch.inference_mode():
        before = source(input_ids=torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1)
        for name in chosen:
            layer = linear_layers(source)[name]
            layer.forward = lambda rows, layer=layer: rounded_product(layer, rows, no_factors(layer))
        after = source(input_ids=torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("part", ["lm_head", "layers.0.mlp.down_proj", "self_attn", ""])
def test_the_estimate_is_close_to_the_divergence_that_rounding_causes(part: str) -> None:
    source = model()
    chosen = [name for name in linear_layers(source) if part in name]
    found = shifts(source, [TOKENS], {name: [no_factors(linear_layers(source)[name])] for name in chosen})
    expected = sum(divergence(shift, len(TOKENS))[0] for shift in found.values())
    assert expected == pytest.approx(measured(source, chosen), rel=0.5)


def test_candidates_are_told_apart_and_the_model_is_left_as_it_was() -> None:
    source = model()
    layer = source.model.layers[0].mlp.down_proj
    uneven = torch.logspace(-3, 3, layer.in_features)
    name = "model.layers.0.mlp.down_proj"
    shift = shifts(source, [TOKENS[:90], TOKENS[90:]], {name: [no_factors(layer), uneven]})[name]
    assert shift.shape == (2, len(TOKENS))
    even_cost, uneven_cost = divergence(shift, len(TOKENS))
    assert uneven_cost > 10 * even_cost
    assert all(parameter.requires_grad and parameter.grad is None for parameter in source.parameters())
    assert not any(module._forward_hooks for module in source.modules())


@pytest.mark.parametrize("convolution", [False, True])
def test_products_are_rounded_as_the_kernel_rounds_them(convolution: bool) -> None:
    layer = Conv1D(5, 16) if convolution else torch.nn.Linear(16, 5)
    weight = (layer.weight if convolution else layer.weight.T).detach()  # [k, n]
    factors = torch.linspace(0.5, 2, 16)
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = rounded_product(layer, rows, factors)
    quantized, scale = quantize_channels((weight * factors[:, None]).numpy())
    levels = (rows / factors).numpy()
    peaks = np.abs(levels).max(axis=1, keepdims=True) / 127
    expected = np.rint(levels / peaks) * peaks @ (quantized * scale)
    torch.testing.assert_close(got - layer.bias.detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    assert not torch.equal(got, linear(rows, weight.T, layer.bias))
