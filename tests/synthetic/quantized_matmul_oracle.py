"""fastserve::QuantizedMatMul in numpy, and sessions of one node of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from fastserve.worker.kernels.int4_weight import pack_int4_weight, rounded_to_int4
from fastserve.worker.kernels.quantized_weight import pack_weight, quantize_channels
from tests.synthetic.one_node_session import one_node_session

Array = npt.NDArray[Any]
TYPES = dict.fromkeys(("x", "weight_scale", "bias"), TensorProto.FLOAT) | {"weight": TensorProto.INT8}


@dataclasses.dataclass(frozen=True)
class Linear:
    """A quantised linear layer. ``quantized`` int8 [k, n] is what ``packed`` holds, or stands for in 4 bits."""

    quantized: Array
    packed: Array
    scale: Array
    bias: Array | None
    weight_bits: int = 8

    @property
    def k(self) -> int:
        return int(self.quantized.shape[0])

    @property
    def n(self) -> int:
        return int(self.quantized.shape[1])

    def session(self, threads: int = 2) -> ort.InferenceSession:
        names = ["x", "weight", "weight_scale", *(["bias"] if self.bias is not None else [])]
        attributes = {"k": self.k, "n": self.n, "weight_bits": self.weight_bits}
        return one_node_session("QuantizedMatMul", names, TYPES, attributes, threads)

    def feeds(self, x: Array) -> dict[str, Array]:
        feeds = {"x": x, "weight": self.packed, "weight_scale": self.scale}
        return feeds if self.bias is None else feeds | {"bias": self.bias}

    def run(self, x: Array, session: ort.InferenceSession | None = None) -> Array:
        (output,) = (session or self.session()).run(None, self.feeds(x))
        return np.asarray(output)

    def oracle(self, x: Array) -> Array:
        """[rows, n] for finite ``x`` [rows, k]: sums in whole numbers, scaling in float32, one rounding at a time."""
        peak = np.abs(x).max(axis=1, keepdims=True)
        usable = peak >= np.float32(127 * 2.0**-126)
        activations = np.rint(x * (np.float32(127) / np.where(usable, peak, 1))) * usable
        sums = activations.astype(np.float64) @ self.quantized.astype(np.float64)  # whole, and far below 2^53
        row_scale = np.where(usable, peak / np.float32(127), np.float32(0))
        with np.errstate(over="ignore"):
            return np.asarray(sums.astype(np.float32) * self.scale * row_scale + (0 if self.bias is None else self.bias))


def random_linear(k: int, n: int, *, bias: bool = True, seed: int = 0, weight_bits: int = 8) -> Linear:
    random = np.random.default_rng([seed, k, n])
    biases = random.standard_normal(n).astype(np.float32) if bias else None
    return linear(random.standard_normal((k, n)), biases, weight_bits)


def linear(weight: Array, bias: Array | None = None, weight_bits: int = 8) -> Linear:
    weight = weight.astype(np.float32)
    if weight_bits == 8:
        packed, scale = pack_weight(weight)
        return Linear(quantize_channels(weight)[0], packed, scale, bias)
    packed, scale = pack_int4_weight(weight)
    quantized = np.rint(rounded_to_int4(weight) / np.where(scale > 0, scale, 1)).astype(np.int8)
    return Linear(quantized, packed, scale, bias, weight_bits)


def random_rows(rows: int, k: int, seed: int = 0) -> Array:
    """[rows, k] with magnitudes that differ from row to row."""
    random = np.random.default_rng([seed, rows, k])
    return random.standard_normal((rows, k)).astype(np.float32) * np.exp(random.uniform(-8, 8, (rows, 1))).astype(np.float32)
