"""The weight of ``fastserve::QuantizedMatMul``: int8, in the order the kernels read it.

A panel is 16 output channels, a group 4 inputs; what is missing in the last ones is zero. Rows of 64 bytes::

    panel 0   sums     | c0 (int32) | c1 (int32)  | ... | c15 (int32) |     of each channel's int8 weights, little endian
              group 0  | c0: k0..k3 | c1: k0..k3  | ... | c15: k0..k3 |
              group 1  | c0: k4..k7 | c1: k4..k7  | ... | c15: k4..k7 |
              ...
    panel 1   sums     | c16        | ...

One row is a vector of AVX-512 and 16 of them are an AMX tile, as they lie; narrower instruction sets read parts of a row. So
every kernel uses the file as it is mapped, and processes share it. It is read fastest when the array starts at a multiple of
64 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import UnsupportedModel

LEVELS = 127
"""Weights are -127..127: symmetric, so that the product with symmetric activations needs no zero points."""
PANEL_CHANNELS = 16
GROUP_INPUTS = 4
ROW_BYTES = PANEL_CHANNELS * GROUP_INPUTS

Int8Array = npt.NDArray[np.int8]
FloatArray = npt.NDArray[np.float32]


def packed_shape(k: int, n: int) -> tuple[int, int, int]:
    """Shape of the packed weight of a [k, n] matrix: [num_panels, 1 + num_groups, 64]."""
    return -(-n // PANEL_CHANNELS), 1 - (-k // GROUP_INPUTS), ROW_BYTES


def pack_weight(weight: npt.NDArray[np.floating[Any]]) -> tuple[Int8Array, FloatArray]:
    """Quantise ``weight`` [k, n], to be multiplied from the left, with one scale for each of the n output channels.

    Returns the packed weight, int8 of :func:`packed_shape`, and scale [n], float32: weight is about ``scale`` times int8.
    Raises UnsupportedModel when a weight is NaN or infinite.
    """
    quantized, scale = quantize_channels(weight)
    k, n = quantized.shape
    panels, rows, _ = packed_shape(k, n)
    full = np.zeros(((rows - 1) * GROUP_INPUTS, panels * PANEL_CHANNELS), np.int8)
    full[:k, :n] = quantized
    packed = np.empty((panels, rows, ROW_BYTES), np.int8)
    sums = full.sum(axis=0, dtype="<i4").reshape(panels, PANEL_CHANNELS)
    packed[:, 0] = sums.view(np.int8)
    # [num_groups, 4, num_panels, 16] -> [num_panels, num_groups, 16, 4]
    groups = full.reshape(rows - 1, GROUP_INPUTS, panels, PANEL_CHANNELS).transpose(2, 0, 3, 1)
    packed[:, 1:] = groups.reshape(panels, rows - 1, ROW_BYTES)
    return packed, scale


def quantize_channels(weight: npt.NDArray[np.floating[Any]]) -> tuple[Int8Array, FloatArray]:
    """int8 weights [k, n] and scale [n]: a channel's largest magnitude becomes 127. Raises UnsupportedModel."""
    scale = channel_scale(weight)
    quantized = np.rint(weight / np.where(scale > 0, scale, 1)).clip(-LEVELS, LEVELS).astype(np.int8)
    return quantized, scale


def channel_scale(weight: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """[n]: what the largest magnitudes of ``weight`` [k, n] are 127 times. Raises UnsupportedModel."""
    peaks = np.abs(weight).max(axis=0)
    if not np.isfinite(peaks).all():
        channel = int(np.flatnonzero(~np.isfinite(peaks))[0])
        raise UnsupportedModel(f"output channel {channel} has a weight that is NaN or infinite: it cannot be quantised")
    scale: FloatArray = (peaks / LEVELS).astype(np.float32)
    return scale
