"""Activations that the source spells out, as the one operation they are."""

from __future__ import annotations

from typing import Any

import torch
from transformers import activations

_TANH_GELU = (activations.NewGELUActivation, activations.FastGELUActivation, activations.AccurateGELUActivation)
"""GELU by its tanh approximation, written down in three ways."""


def use_single_operations(model: Any) -> None:
    """Replace activations of ``model`` by their torch built-ins, which become one ONNX node each. Changes ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _TANH_GELU):
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))
            elif isinstance(child, activations.GELUActivation):
                setattr(parent, name, torch.nn.GELU())
