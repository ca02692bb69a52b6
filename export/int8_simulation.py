"""What int8 costs a language model, product by product, before there is a quantised graph: one pass forward and one back.

Rounding moves the outputs of a product by some e at every token. If g is the gradient, with respect to these outputs, of the
log-probabilities of tokens drawn from the model's own predictions, the predictions then diverge from what they were (Kullback and
Leibler) by half the mean of (g . e)^2, to second order: the quadratic form of the Fisher information (Martens, New insights and
perspectives on the natural gradient method, 2014). Errors of different products add up as if they were independent.

A divergence of d nats multiplies the expected perplexity by exp(d). Perplexity itself says the same, with far more noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear
from transformers.pytorch_utils import Conv1D

from fastserve.worker.kernels.quantized_weight import LEVELS

Candidates = Mapping[str, Sequence[torch.Tensor]]
"""By the name of a linear layer: ways to quantise it, each the factors [k] that its rows are divided by and its weights
multiplied with before both are rounded."""

_SEED = 0


def linear_layers(model: Any) -> dict[str, Any]:
    """By name: the modules that multiply rows by a weight."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}


def shifts(model: Any, texts: Sequence[Sequence[int]], candidates: Candidates) -> dict[str, torch.Tensor]:
    """g . e of each candidate and row that the layer was given, [num_candidates, num_rows], by the name of the layer; those of
    layers that are one product add up. ``texts``: token ids of each, read one by one. Layers that were given nothing, or that
    no prediction depends on, are missing. The model is left as it was."""
    found: dict[str, list[torch.Tensor]] = {}
    for token_ids in texts:
        for name, shift in _shifts(model, token_ids, candidates).items():
            found.setdefault(name, []).append(shift)
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def _shifts(model: Any, token_ids: Sequence[int], candidates: Candidates) -> dict[str, torch.Tensor]:
    layers = linear_layers(model)
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(_only_activations_have_gradients(model))
        for name, factors in candidates.items():
            hook = layers[name].register_forward_hook(_Watch(name, factors, found))
            stack.callback(hook.remove)
        with torch.enable_grad():
            logits = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0, :-1].float()
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(_SEED))[:, 0]
            torch.autograd.backward(cross_entropy(logits, drawn, reduction="sum"))
    return found


def divergence(shift: torch.Tensor, num_tokens: int) -> list[float]:
    """Nats a token of each candidate. ``shift``: the sum of :func:`shifts` over the layers of a product; ``num_tokens``: of all
    texts."""
    values: list[float] = (shift.double().square().sum(1) / (2 * num_tokens)).tolist()
    return values


class _Watch:
    """A forward hook that, on the way back, notes the shifts of one layer."""

    def __init__(self, name: str, factors: Sequence[torch.Tensor], found: dict[str, torch.Tensor]) -> None:
        self._name, self._factors, self._found = name, factors, found

    def __call__(self, layer: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows, exact = given[0].detach(), output.detach()

        def note(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                each = [(gradient * (rounded_product(layer, rows, factors) - exact)).sum(-1) for factors in self._factors]
            shift = torch.stack([values.reshape(-1) for values in each])
            self._found[self._name] = self._found[self._name] + shift if self._name in self._found else shift

        if output.requires_grad:
            output.register_hook(note)  # type: ignore[no-untyped-call]


def rounded_product(layer: Any, rows: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """What ``fastserve::QuantizedMatMul`` makes of ``rows`` [.., k]: [.., n]."""
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # [n, k]
    return linear(rounded(rows / factors), rounded(weight * factors), layer.bias)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """``values`` [.., k] in int8, each row with a scale of its own, and back."""
    scale = values.abs().amax(-1, keepdim=True).div_(LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)
    return (values / scale).round_().mul_(scale)


@contextmanager
def _only_activations_have_gradients(model: Any) -> Iterator[None]:
    """No gradient of a weight is computed, which would take as much memory as the weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, states: states.requires_grad_())
    try:
        yield
    finally:
        hook.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
