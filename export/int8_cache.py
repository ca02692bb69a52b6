"""What an int8 KV cache costs a language model, before there is a graph: its predictions with keys and values rounded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

from fastserve.export.quantization_cost import measured_divergence, rounded

_IMPLEMENTATION = "eager"
"""That sources are loaded with. transformers looks for it in its registry, then in the architecture's own module."""


def cache_cost(model: Any, texts: Sequence[Sequence[int]]) -> float:
    """Nats a token by which the predictions of ``model``, a source, diverge (Kullback and Leibler) from what they were when its
    attention reads keys and values in int8. ``texts``: token ids of each, read one by one. Perplexity is expected to rise to
    exp(that), with far less noise than a measured one. The model is left as it was."""
    return measured_divergence(model, texts, cache_rounded)


@contextmanager
def cache_rounded() -> Iterator[None]:
    """Every source reads keys and values as an int8 cache holds them: a scale for each token and head."""
    AttentionInterface.register(_IMPLEMENTATION, _attend)
    try:
        yield
    finally:
        del AttentionInterface._global_mapping[_IMPLEMENTATION]


def _attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **features: Any) -> Any:
    """transformers' attention interface. Keys come rotated, as they are cached."""
    attend = sys.modules[type(module).__module__].eager_attention_forward
    return attend(module, query, rounded(key), rounded(value), mask, **features)
