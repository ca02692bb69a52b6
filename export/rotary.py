"""Rotary embeddings whose frequencies depend on the longest position in the batch, made independent of it.

Dynamic NTK and longrope switch frequencies once any position passes a limit, so a long neighbour would change the tokens
of a short request. Up to that limit the frequencies are constant: they are frozen, and the limit becomes the longest
context the export is valid for.
"""

from __future__ import annotations

from typing import Any

from fastserve.errors import UnsupportedModel


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


def freeze_frequencies(model: Any) -> None:
    """Stop the model's rotary modules from recomputing frequencies; exact up to :func:`context_limit`."""
    for module in model.modules():
        if isinstance(kind := getattr(module, "rope_type", None), str) and _depends_on_batch(kind):
            module.rope_type = "default"


def _depends_on_batch(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _original_limit(model_type: str, parameters: dict[str, Any]) -> int:
    limit = parameters.get("original_max_position_embeddings")
    if not isinstance(limit, int):
        raise UnsupportedModel(f"{model_type}: longrope without original_max_position_embeddings")
    return limit
