"""A layer's product, as the benchmarks of products take it from known models."""

from __future__ import annotations

import dataclasses

FLOAT = "MatMul"
"""ONNX Runtime's own product, which others are compared with."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A matrix [k, n] of a known model."""

    name: str
    k: int
    n: int
