"""For which device a decoder is exported: everything in which its graphs differ stands here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from fastserve.export.attention import DOMAIN, AttentionLayer
from fastserve.manifest import CPU, CUDA, LAYOUTS, LayerCacheSpec, cache_shape

CUDA_DOMAIN = "com.microsoft"
_CACHE_AXES = {"block": "num_blocks", "token": "block_size"}
"""Axes of a cache layout whose size is free."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """``domain``: of the attention operator. ``dtype``: of weights and arithmetic. ``graph_files``: KV element type -> file."""

    device: str
    domain: str
    dtype: torch.dtype
    graph_files: Mapping[str, str]

    @property
    def layouts(self) -> tuple[str, str]:
        """Of the key and the value caches."""
        return LAYOUTS[self.device]

    def sample_cache(self, layout: str, layer: AttentionLayer, num_blocks: int, block_size: int) -> torch.Tensor:
        """An example cache of one layer for a trace."""
        shape = cache_shape(layout, LayerCacheSpec(layer.kv_num_heads, layer.head_size), num_blocks, block_size)
        return torch.zeros(shape, dtype=self.dtype)


def free_cache_axes(layout: str) -> dict[int, str]:
    """Axis -> name of its size, of the axes of a cache whose size is free."""
    return {axis: _CACHE_AXES[name] for axis, name in enumerate(layout.split(",")) if name in _CACHE_AXES}


TARGETS = {
    CPU: Target(CPU, DOMAIN, torch.float32, {"fp32": "model.onnx", "fp16": "model.kv_fp16.onnx", "int8": "model.kv_int8.onnx"}),
    CUDA: Target(CUDA, CUDA_DOMAIN, torch.float16, {"fp16": "model.onnx"}),
}
"""By device."""
