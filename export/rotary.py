"""Rotary embeddings whose frequencies depend on the longest position in the batch, made independent of it.

Dynamic NTK and longrope switch frequencies once any position passes a limit, so a long neighbour would change the tokens
of a short request. Up to that limit the frequencies are constant: they are frozen, and the limit becomes the longest
context the export is valid for. Longrope has a second set, for longer contexts: an export that is asked for one of those
has that set for every request, short ones too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fastserve.errors import InvalidRequest, UnsupportedModel


@dataclasses.dataclass(frozen=True, slots=True)
class RotaryPlan:
    """``max_model_len``: longest context of the export. ``beyond``: None, or the limit of the first set of frequencies that is
    passed, in tokens; then the second set is used throughout."""

    max_model_len: int
    beyond: int | None = None


def rotary_plan(config: Any, max_model_len: int | None) -> RotaryPlan:
    """``max_model_len``: what the export is asked for, None: as long as one set of frequencies holds from the start.

    Raises InvalidRequest when the model cannot be that long, else as :func:`context_limit`.
    """
    limit = context_limit(config)
    if max_model_len is None or max_model_len <= limit:
        return RotaryPlan(max_model_len or limit)
    longest = config.get_text_config(decoder=True).max_position_embeddings
    if max_model_len > longest:
        raise InvalidRequest("max_model_len", max_model_len, f"2 to {longest}, the model's max_position_embeddings")
    return RotaryPlan(max_model_len, limit)


def context_limit(config: Any) -> int:
    """Longest context in tokens for which one set of frequencies holds. Raises UnsupportedModel when unknown."""
    text = config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        raise UnsupportedModel(f"{config.model_type}: its configuration has no max_position_embeddings")
    if limit < 2:
        raise UnsupportedModel(f"{config.model_type}: max_position_embeddings={limit} leaves no room for a prompt and an answer")
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    for parameters in by_layer_type or [rope]:
        kind = parameters.get("rope_type", "default")
        if not _depends_on_batch(kind):
            continue
        if by_layer_type:
            raise UnsupportedModel(
                f"{config.model_type}: rope_type {kind} per layer type depends on the longest position in a batch"
            )
        if kind == "longrope":
            limit = min(limit, _original_limit(config.model_type, parameters))
    return limit


def freeze_frequencies(model: Any, beyond: int | None = None) -> None:
    """Stop the model's rotary modules from recomputing frequencies; exact up to :func:`context_limit`. ``beyond``: as in
    :class:`RotaryPlan`; exact for contexts that are longer."""
    for module in model.modules():
        if isinstance(kind := getattr(module, "rope_type", None), str) and _depends_on_batch(kind):
            if beyond is not None:
                module(torch.zeros(1), torch.tensor([[beyond]]))  # the module itself changes sets, for its first such position
            module.rope_type = "default"


def _depends_on_batch(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _original_limit(model_type: str, parameters: dict[str, Any]) -> int:
    limit = parameters.get("original_max_position_embeddings")
    if not isinstance(limit, int):
        raise UnsupportedModel(f"{model_type}: longrope without original_max_position_embeddings")
    return limit
