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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div, linear
from transformers.pytorch_utils import Conv1D

from fastserve.export.options import INT4
from fastserve.worker.kernels.int4_weight import rounded_to_int4
from fastserve.worker.kernels.quantized_weight import LEVELS

Call = tuple[torch.Tensor, torch.Tensor]
"""Of a layer: the rows [.., k] it was given, the gradient of what it gave [.., n]."""
_SEED = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Rounding:
    """A way to quantise a linear layer. ``precision``: of its weights, int8 or int4; rows are int8. ``factors`` [k]: rows are
    divided by them and weights multiplied with them before both are rounded."""

    precision: str
    factors: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class LayerUse:
    """What a linear layer was given and what depends on it: its calls by each text."""

    layer: Any
    texts: list[list[Call]]

    def shifts(self, roundings: Sequence[Rounding]) -> torch.Tensor:
        """g . e of each way to round and each row, [num_roundings, num_rows]. A weight is rounded once for each way."""
        found: list[list[torch.Tensor]] = []
        with torch.no_grad():
            exact = [[self.layer(rows) for rows, _ in calls] for calls in self.texts]
            for rounding in roundings:
                weight = rounded_weight(self.layer, rounding)
                found.append([self._shift(weight, rounding.factors, *text) for text in zip(self.texts, exact, strict=True)])
        return torch.stack([torch.cat(texts) for texts in found])

    def _shift(self, weight: torch.Tensor, factors: torch.Tensor, calls: list[Call], exact: list[torch.Tensor]) -> torch.Tensor:
        """Of one text, [num_rows]. ``exact``: what each call gave."""
        shifts = [
            (gradient * (rounded_product(self.layer, rows, weight, factors) - output)).sum(-1)
            for (rows, gradient), output in zip(calls, exact, strict=True)
        ]
        return torch.stack(shifts).sum(0).reshape(-1)


def linear_layers(model: Any) -> dict[str, Any]:
    """By name: the modules that multiply rows by a weight."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}


def uses_of_layers(model: Any, texts: Sequence[Sequence[int]], names: Collection[str]) -> dict[str, LayerUse]:
    """By name, of the linear layers ``names``. ``texts``: token ids of each, read one by one. Layers that were given nothing, or
    that no prediction depends on, are missing. The model is left as it was."""
    layers = linear_layers(model)
    found: dict[str, LayerUse] = {}
    for token_ids in texts:
        for name, calls in _calls(model, token_ids, {name: layers[name] for name in names}).items():
            found.setdefault(name, LayerUse(layers[name], [])).texts.append(calls)
    return found


def _calls(model: Any, token_ids: Sequence[int], layers: dict[str, Any]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}

    def watch(name: str, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows = given[0].detach()
        if output.requires_grad:
            output.register_hook(lambda gradient: found.setdefault(name, []).append((rows, gradient)))  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        stack.enter_context(_only_activations_have_gradients(model))
        for name, layer in layers.items():
            hook = layer.register_forward_hook(lambda _, given, output, name=name: watch(name, given, output))
            stack.callback(hook.remove)
        with torch.enable_grad():
            logits = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0, :-1].float()
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(_SEED))[:, 0]
            torch.autograd.backward(cross_entropy(logits, drawn, reduction="sum"))
    return found


def divergences(shifts: Sequence[torch.Tensor], num_tokens: int) -> list[float]:
    """Nats a token of each way to round a product. ``shifts``: those of its layers, [num_roundings, num_rows] each;
    ``num_tokens``: of all texts."""
    values: list[float] = (torch.stack(list(shifts)).sum(0).double().square().sum(1) / (2 * num_tokens)).tolist()
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
        layer.forward = functools.partial(_rounded_forward, layer, roundings[name])
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _rounded_forward(layer: Any, rounding: Rounding, rows: torch.Tensor) -> torch.Tensor:
    return rounded_product(layer, rows, rounded_weight(layer, rounding), rounding.factors)


def rounded_weight(layer: Any, rounding: Rounding) -> torch.Tensor:
    """[n, k], as ``fastserve::QuantizedMatMul`` reads it; :class:`Conv1D` stores [k, n]."""
    scaled = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach() * rounding.factors
    return torch.from_numpy(rounded_to_int4(scaled.numpy().T).T) if rounding.precision == INT4 else rounded(scaled)


def rounded_product(layer: Any, rows: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """What ``fastserve::QuantizedMatMul`` makes of ``rows`` [.., k]: [.., n]. ``weight``: of :func:`rounded_weight`."""
    return linear(rounded(rows / factors), weight, layer.bias)


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
