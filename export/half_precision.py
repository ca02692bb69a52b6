"""Weights in half precision: rounded first, so that a reference in fp32 can have exactly the weights of the export, then stored.

Only parameters change type. Buffers keep theirs: the frequencies of rotary embeddings are buffers, and need the precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastserve.errors import UnsupportedModel
from fastserve.export.proof import Reference, greedy_agreement, largest_difference, last_rows


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Give every parameter the nearest values that ``dtype`` has, and keep its type. Raises UnsupportedModel when one is too
    large."""
    largest = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        rounded = parameter.data.to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            kind = str(dtype).removeprefix("torch.")
            raise UnsupportedModel(f"{name}: has values beyond {largest:g}, the largest of {kind}")
        parameter.data.copy_(rounded)


def narrow_weights(model: Any, dtype: torch.dtype) -> None:
    """Store every parameter as ``dtype``, one at a time, so that no more than one is held twice."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def half_precision_loss(model: Any, reference: Reference) -> dict[str, float]:
    """How far the source model itself, with its weights narrowed and its arithmetic in their type, is from the reference.

    Raises UnsupportedModel when its numbers do not fit.
    """
    with torch.no_grad():
        logits = [last_rows(model, tokens).float().numpy() for tokens in reference.sequences]
    difference = largest_difference(logits, reference.logits)
    if not math.isfinite(difference):
        raise UnsupportedModel(
            f"{model.config.model_type}: in half precision its logits are not finite; export with --device cpu"
        )
    agreement = greedy_agreement(logits, reference.logits, reference.scale)
    return {"max_abs_logit_difference_fp16": difference, "greedy_disagreements_fp16": agreement["greedy_disagreements"]}
