"""Ways for a model to lose a feature that no value of its configuration takes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def set_everywhere(attribute: str, value: Any) -> Callable[[Any], None]:
    """Give every module that has ``attribute`` another one."""

    def change(model: Any) -> None:
        changed = [module for module in model.modules() if hasattr(module, attribute)]
        for module in changed:
            setattr(module, attribute, value)
        assert changed, attribute

    return change


def zero_biases(*projections: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith(tuple(f"{projection}{end}" for projection in projections for end in (".bias", "_bias"))):
                parameter.data.zero_()

    return change


EMBEDDING_SCALE = {"embedding scale": set_everywhere("embed_scale", torch.tensor(1.0))}


def qk_norms_off(model: Any) -> None:
    for name in ("q_norm", "k_norm"):
        set_everywhere(name, torch.nn.Identity())(model)


def sinks_off(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.data.fill_(-1e9)


def experts_off(model: Any) -> None:
    """Leave only what dense layers compute."""
    for name, parameter in model.named_parameters():
        if name.endswith("experts.down_proj"):
            parameter.data.zero_()
