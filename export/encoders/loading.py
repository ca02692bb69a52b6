"""Loads an encoder with the head of its task."""

from __future__ import annotations

from typing import Any

from fastserve.errors import UnsupportedModel
from fastserve.export.encoders.heads import HEADS
from fastserve.export.source import LoadedModel, Source, check_weights, load_tokenizer, load_weights

_POOLER = "pooler"
"""The part of a base model that is a head: it may be missing where nothing reads it, and left over."""


def load_encoder(source: Source, config: Any, task: str) -> LoadedModel:
    """Read tokenizer and weights. Raises ModelNotFound or UnsupportedModel (weights of the encoder or the head missing, weights
    of the encoder left over, slow tokenizer). Heads for other tasks may be left over."""
    if source.gguf_file is not None:
        raise UnsupportedModel(f"{source.label}: a GGUF file; {task} takes a Hugging Face folder or hub id")
    head = HEADS[task]
    tokenizer = load_tokenizer(source)
    model, info = load_weights(source, config, head.auto_class)
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    if head.output_name == "embeddings":
        missing = [name for name in missing if not name.startswith(f"{_POOLER}.")]
    check_weights(source, model, missing, [name for name in unexpected if _is_of_encoder(model, name)])
    return LoadedModel(source, model.eval().requires_grad_(False), tokenizer)


def _is_of_encoder(model: Any, name: str) -> bool:
    """Whether a weight with this name belongs to the part of a checkpoint that all tasks share."""
    part = name.removeprefix(f"{model.base_model_prefix}.").split(".")[0]
    return part != _POOLER and part in dict(model.base_model.named_children())
