"""The weight of ``fastserve::QuantizedMatMul`` in 4 bits, in the order the kernels read it.

Blocks of 32 inputs of an output channel have levels 0..15 in steps of their own, whole numbers on the channel's scale of 8 bits
("progressive group quantisation": Lin et al., QServe, 2024, section 4.1)::

    int8 = level * step - offset, -127..127        weight is about scale * int8

So a kernel makes int8 weights of them without rounding, and the product is the one of int8 (``quantized_weight.py``). A panel is
16 output channels, a group 4 inputs, a block 8 groups. Rows of 64 bytes::

    sums        | c0 (int32) | c1 | ... | c15 |     of each channel's int8 weights, little endian
    blocks 0, 1 | steps c0..c15 | offsets c0..c15 | steps c0..c15 | offsets c0..c15 |     steps unsigned, offsets signed
    blocks 2, 3 ...
    levels      | c0: k0..k3 | c1: k0..k3 | ... | c15: k0..k3 |     in the low halves of the bytes, in the high ones
                | c0: k4..k7 | c1: k4..k7 | ... | c15: k4..k7 |     the next group; so 4 rows a block
                ...

4.5 bits a weight, 32 more a channel. Inputs past k have levels of no meaning, which the sums do not count; channels past n are
zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.worker.kernels.quantized_weight import (
    GROUP_INPUTS,
    LEVELS,
    PANEL_CHANNELS,
    ROW_BYTES,
    FloatArray,
    Int8Array,
    channel_scale,
)

BLOCK_INPUTS = 32
HIGHEST_LEVEL = 15
_BLOCK_GROUPS = BLOCK_INPUTS // GROUP_INPUTS
_BLOCK_ROWS = _BLOCK_GROUPS // 2
"""Of levels."""
_FINER_STEPS = (-2, -1, 0, 1)
"""What is tried beside the step that reaches from a block's least to its largest weight: finer ones cut off the ends."""
_CHANNELS_AT_ONCE = 256


def int4_packed_shape(k: int, n: int) -> tuple[int, int, int]:
    """Shape of the packed weight of a [k, n] matrix: [num_panels, rows of a panel, 64]."""
    num_blocks = _num_blocks(k)
    return -(-n // PANEL_CHANNELS), 1 + (num_blocks + 1) // 2 + num_blocks * _BLOCK_ROWS, ROW_BYTES


def pack_int4_weight(weight: npt.NDArray[np.floating[Any]]) -> tuple[Int8Array, FloatArray]:
    """Quantise ``weight`` [k, n], to be multiplied from the left.

    Returns the packed weight, int8 of :func:`int4_packed_shape`, and scale [n], float32. Raises UnsupportedModel when a weight
    is NaN or infinite.
    """
    k, n = weight.shape
    scale = channel_scale(weight)
    packed = np.zeros(int4_packed_shape(k, n), np.int8)
    for first in range(0, n, _CHANNELS_AT_ONCE):
        last = min(first + _CHANNELS_AT_ONCE, n)
        panels = slice(first // PANEL_CHANNELS, -(-last // PANEL_CHANNELS))
        _pack_channels(packed[panels], k, *_blocks(weight[:, first:last], scale[first:last]))
    return packed, scale


def rounded_to_int4(weight: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """``weight`` [k, n] as :func:`pack_int4_weight` rounds it, [k, n]. Raises UnsupportedModel."""
    scale = channel_scale(weight)
    found = np.empty(weight.shape, np.float32)
    for first in range(0, weight.shape[1], _CHANNELS_AT_ONCE):
        channels = slice(first, first + _CHANNELS_AT_ONCE)
        found[:, channels] = _int8_weights(len(weight), *_blocks(weight[:, channels], scale[channels])) * scale[channels]
    return found


def _num_blocks(k: int) -> int:
    return -(-k // BLOCK_INPUTS)


def _blocks(weight: npt.NDArray[np.floating[Any]], scale: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Levels [num_blocks, 32, n], steps and offsets [num_blocks, n], whole numbers, that come closest to ``weight`` [k, n]."""
    k, n = weight.shape
    padded = np.zeros((_num_blocks(k) * BLOCK_INPUTS, n), np.float32)
    padded[:k] = weight / np.where(scale > 0, scale, 1)
    padded[k:] = padded[k - 1 : k]  # neither a least nor a largest weight of its own
    blocks = padded.reshape(-1, BLOCK_INPUTS, n)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    levels, steps, offsets = np.zeros_like(blocks), np.ones_like(low), np.zeros_like(low)
    least = np.full_like(low, np.inf)
    for finer in _FINER_STEPS:
        step = np.clip(np.rint((high - low) / HIGHEST_LEVEL) + finer, 1, 2 * LEVELS // HIGHEST_LEVEL + 1)
        offset = np.clip(np.rint((HIGHEST_LEVEL * step - low - high) / 2), -LEVELS, LEVELS)
        highest = np.minimum(np.floor((offset + LEVELS) / step), HIGHEST_LEVEL)  # that stays within int8; the lowest always does
        level = np.rint((blocks + offset[:, None]) / step[:, None]).clip(0, highest[:, None])
        distance = np.square(level * step[:, None] - offset[:, None] - blocks)
        distance.reshape(-1, n)[k:] = 0
        error = distance.sum(axis=1)
        better = error < least
        least = np.where(better, error, least)
        levels = np.where(better[:, None], level, levels)
        steps, offsets = np.where(better, step, steps), np.where(better, offset, offsets)
    return levels, steps, offsets


def _int8_weights(k: int, levels: FloatArray, steps: FloatArray, offsets: FloatArray) -> FloatArray:
    """What the levels stand for, [k, n], whole numbers."""
    found: FloatArray = (levels * steps[:, None] - offsets[:, None]).reshape(-1, levels.shape[-1])[:k]
    return found


def _pack_channels(packed: Int8Array, k: int, levels: FloatArray, steps: FloatArray, offsets: FloatArray) -> None:
    """Fill ``packed`` [num_panels, rows, 64], zeros before."""
    num_blocks, _, n = levels.shape
    panels = len(packed)
    sums = np.zeros(panels * PANEL_CHANNELS, "<i4")
    sums[:n] = _int8_weights(k, levels, steps, offsets).sum(axis=0, dtype=np.int64)
    packed[:, 0] = sums.view(np.int8).reshape(panels, ROW_BYTES)
    ends = np.zeros((panels, num_blocks + num_blocks % 2, 2, PANEL_CHANNELS), np.uint8)
    ends[:, :num_blocks, 0] = _by_panel(steps.astype(np.uint8), panels)
    ends[:, :num_blocks, 1] = _by_panel(offsets.astype(np.int8).view(np.uint8), panels)
    first_levels = 1 + ends.shape[1] // 2
    packed[:, 1:first_levels] = ends.reshape(panels, -1, ROW_BYTES).view(np.int8)
    whole = np.zeros((num_blocks, BLOCK_INPUTS, panels * PANEL_CHANNELS), np.uint8)
    whole[:, :, :n] = levels
    # [num_blocks * 4 pairs of groups, 2 groups, 4 inputs, num_panels, 16] -> [num_panels, pairs, 2 groups, 16, 4 inputs]
    groups = whole.reshape(-1, 2, GROUP_INPUTS, panels, PANEL_CHANNELS).transpose(3, 0, 1, 4, 2)
    packed[:, first_levels:] = (groups[:, :, 0] | groups[:, :, 1] << 4).reshape(panels, -1, ROW_BYTES).view(np.int8)


def _by_panel(values: npt.NDArray[np.uint8], panels: int) -> npt.NDArray[np.uint8]:
    """[num_blocks, n] -> [num_panels, num_blocks, 16]"""
    num_blocks, n = values.shape
    whole = np.zeros((num_blocks, panels * PANEL_CHANNELS), np.uint8)
    whole[:, :n] = values
    return whole.reshape(num_blocks, panels, PANEL_CHANNELS).transpose(1, 0, 2)
