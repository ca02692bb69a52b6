"""What rounding costs a language model, layer by layer, before there is a quantised graph: one pass forward and one back.

Rounding moves the outputs of a product by some e at every token. If g is the gradient, with respect to these outputs, of the
log-probabilities of tokens drawn from the model's own predictions, the predictions then diverge from what they were (Kullback and
Leibler) by half the mean of (g . e)^2, to second order: the quadratic form of the Fisher information (Martens, New insights and
perspectives on the natural gradient method, 2014). Errors of different products add up as if they were independent.

A divergence of d nats multiplies the expected perplexity by exp(d). Perplexity itself says the same, with far more noise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div, linear
from transformers.pytorch_utils import Conv1D

from fastserve.export.options import INT4
from fastserve.worker.kernels.int4_weight import rounded_to_int4
from fastserve.worker.kernels.quantized_weight import LEVELS

_SEED = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Rounding:
    """A way to quantise a linear layer. ``precision``: of its weights, int8 or int4; rows are int8. ``factors`` [k]: rows are
    divided by them and weights multiplied with them before both are rounded."""

    precision: str
    factors: torch.Tensor


def linear_layers(model: Any) -> dict[str, Any]:
    """By name: the modules that multiply rows by a weight."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}


def shifts(model: Any, texts: Sequence[Sequence[int]], candidates: Mapping[str, Sequence[Rounding]]) -> dict[str, torch.Tensor]:
    """g . e of each way to round a linear layer and each row it was given, [num_roundings, num_rows], by the layer's name.

    ``texts``: token ids of each, read one by one: what layers were given by one is in memory, and a weight is rounded anew for
    each. Layers that were given nothing, or that no prediction depends on, are missing. The model is left as it was.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for token_ids in texts:
        for name, shift in _shifts(model, token_ids, candidates).items():
            found.setdefault(name, []).append(shift)
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def _shifts(model: Any, token_ids: Sequence[int], candidates: Mapping[str, Sequence[Rounding]]) -> dict[str, torch.Tensor]:
    layers = linear_layers(model)
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(_only_activations_have_gradients(model))
        for name, roundings in candidates.items():
            hook = layers[name].register_forward_hook(_Watch(name, roundings, found))
            stack.callback(hook.remove)
        with torch.enable_grad():
            logits = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0, :-1].float()
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(_SEED))[:, 0]
            torch.autograd.backward(cross_entropy(logits, drawn, reduction="sum"))
    return found


class _Watch:
    """A forward hook that, on the way back, notes the shifts of one layer; calls of one that is called again add up."""

    def __init__(self, name: str, roundings: Sequence[Rounding], found: dict[str, torch.Tensor]) -> None:
        self._name, self._roundings, self._found = name, roundings, found

    def __call__(self, layer: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows, exact = given[0].detach(), output.detach()

        def note(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                errors = [rounded_product(layer, rounding, rows) - exact for rounding in self._roundings]
                shift = torch.stack([(gradient * error).sum(-1).reshape(-1) for error in errors])
            self._found[self._name] = self._found[self._name] + shift if self._name in self._found else shift

        if output.requires_grad:
            output.register_hook(note)  # type: ignore[no-untyped-call]


def divergences(of_layers: Sequence[torch.Tensor], num_tokens: int) -> list[float]:
    """Nats a token of each way to round a product. ``of_layers``: the :func:`shifts` of its layers; ``num_tokens``: of all
    texts."""
    values: list[float] = (torch.stack(list(of_layers)).sum(0).double().square().sum(1) / (2 * num_tokens)).tolist()
    return values


def measured_divergence(model: Any, texts: Sequence[Sequence[int]], altered: Callable[[], AbstractContextManager[None]]) -> float:
    """Nats a token by which the predictions of ``model``, while ``altered`` lasts, diverge (Kullback and Leibler) from what they
    are otherwise. ``texts``: token ids of each, read one by one."""
    diverged = 0.0
    for token_ids in texts:
        tokens = torch.tensor([list(token_ids)])
        exact = _log_predictions(model, tokens)
        with altered():
            diverged += float(kl_div(_log_predictions(model, tokens), exact, reduction="sum", log_target=True))
    return diverged / sum(map(len, texts))


def _log_predictions(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)  # [num_tokens, vocab]


@contextmanager
def rounded_layers(model: Any, roundings: Mapping[str, Rounding]) -> Iterator[None]:
    """Linear layers, by name, compute what products of the graph will. A weight is rounded whenever it is read, so that no more
    than one is in memory."""
    layers = {name: layer for name, layer in linear_layers(model).items() if name in roundings}
    for name, layer in layers.items():
        layer.forward = functools.partial(rounded_product, layer, roundings[name])
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def rounded_product(layer: Any, rounding: Rounding, rows: torch.Tensor) -> torch.Tensor:
    """What ``fastserve::QuantizedMatMul`` makes of ``rows`` [.., k]: [.., n]."""
    return linear(rounded(rows / rounding.factors), rounded_weight(layer, rounding), layer.bias)


def rounded_weight(layer: Any, rounding: Rounding) -> torch.Tensor:
    """[n, k], as ``fastserve::QuantizedMatMul`` reads it; :class:`Conv1D` stores [k, n]."""
    scaled = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach() * rounding.factors
    return rounded_in_4_bits(scaled) if rounding.precision == INT4 else rounded(scaled)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """``values`` [.., k] in int8, each row with a scale of its own, and back."""
    scale = values.abs().amax(-1, keepdim=True).div_(LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)
    return (values / scale).round_().mul_(scale)


def rounded_in_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [n, k] as an export in int4 rounds it."""
    return torch.from_numpy(rounded_to_int4(weight.numpy().T).T)


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
