"""The one function that stands in for every mixture of experts while a model is traced.

transformers routes: it hands over each token's experts and their weights. Here every expert computes every token, and those that
were not chosen weigh zero: shapes are free, and nothing depends on which experts the neighbours chose. The price is the
arithmetic of all experts. Their matrices stand side by side, so a layer is two ordinary products, which give a row the same
bits in any batch; products of a matrix for each expert do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.integrations.moe import ExpertsInterface

from fastserve.errors import UnsupportedModel

IMPLEMENTATION = "fastserve"


def all_experts(
    module: Any,
    hidden_states: torch.Tensor,  # [num_tokens, hidden_size]
    top_k_index: torch.Tensor,  # int64 [num_tokens, k]
    top_k_weights: torch.Tensor,  # [num_tokens, k]
) -> torch.Tensor:
    """transformers' experts interface. ``module``: an experts module with stacked weights. Returns as ``hidden_states``."""
    if module.has_post_expert_norm:
        raise UnsupportedModel(f"{type(module).__name__}: a norm after each expert cannot be represented")
    chosen = torch.nn.functional.one_hot(top_k_index, module.num_experts).to(top_k_weights.dtype)
    weights = (chosen * top_k_weights[:, :, None]).sum(1)  # [num_tokens, num_experts]
    inner = hidden_states @ _side_by_side(module, "gate_up_proj" if module.has_gate else "up_proj")
    inner = inner.reshape(inner.shape[0], module.num_experts, -1)
    if module.has_bias:
        inner = inner + getattr(module, "gate_up_proj_bias" if module.has_gate else "up_proj_bias")
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outputs: torch.Tensor = (inner * weights[:, :, None]).flatten(1) @ _on_top_of_each_other(module, "down_proj")
    return outputs + weights @ module.down_proj_bias if module.has_bias else outputs


def _matrices(module: Any, name: str) -> torch.Tensor:
    """[num_experts, inputs, outputs]"""
    weight: torch.Tensor = getattr(module, name)
    return weight if module.is_transposed else weight.transpose(1, 2)


def _side_by_side(module: Any, name: str) -> torch.Tensor:
    """[inputs, num_experts * outputs]: every expert of the same rows."""
    return _matrices(module, name).transpose(0, 1).flatten(1)


def _on_top_of_each_other(module: Any, name: str) -> torch.Tensor:
    """[num_experts * inputs, outputs]: each expert of its own part of the rows, summed up."""
    return _matrices(module, name).flatten(0, 1)


@contextlib.contextmanager
def experts_replaced(model: Any) -> Iterator[None]:
    """Let :func:`all_experts` compute ``model``'s experts, if it has any. Registry and model are as before on the way out."""
    if not model._can_set_experts_implementation():
        yield
        return
    previous = model.config._experts_implementation
    ExpertsInterface.register(IMPLEMENTATION, all_experts)
    try:
        model.set_experts_implementation(IMPLEMENTATION)
        yield
    finally:
        model.set_experts_implementation(previous)
        ExpertsInterface._global_mapping.pop(IMPLEMENTATION, None)
