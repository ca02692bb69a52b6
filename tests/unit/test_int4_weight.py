"""How float weights become the packed 4-bit weight of fastserve::QuantizedMatMul."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastserve.errors import UnsupportedModel
from fastserve.worker.kernels.int4_weight import int4_packed_shape, pack_int4_weight, rounded_to_int4
from fastserve.worker.kernels.quantized_weight import channel_scale

SHAPES = [(1, 1), (31, 16), (32, 16), (33, 17), (70, 5), (96, 40), (130, 300)]
Array = npt.NDArray[Any]


def weights(k: int, n: int) -> Array:
    """[k, n], blocks of unlike size, some all positive or all negative."""
    random = np.random.default_rng([k, n])
    sizes = np.exp(random.uniform(-3, 0, (-(-k // 32), n))).repeat(32, axis=0)[:k]
    shifts = random.uniform(-1, 1, (-(-k // 32), n)).repeat(32, axis=0)[:k]
    found: Array = (random.standard_normal((k, n)) * sizes + shifts).astype(np.float32)
    return found


def unpacked(packed: Array, k: int, n: int) -> tuple[Array, Array, Array]:
    """What the layout says, byte by byte: levels [k, n], and step and offset of each, [k, n], whole numbers."""
    levels, steps, offsets = (np.empty((k, n), int) for _ in range(3))
    num_blocks = -(-k // 32)
    for i in range(k):
        for channel in range(n):
            panel, lane, block = packed[channel // 16], channel % 16, i // 32
            ends = panel[1 + block // 2, 32 * (block % 2) :]
            steps[i, channel] = int(ends[lane]) & 0xFF
            offsets[i, channel] = int(ends[16 + lane])
            pair = int(panel[1 + (num_blocks + 1) // 2 + i // 8, 4 * lane + i % 4]) & 0xFF
            levels[i, channel] = pair >> 4 if i % 8 >= 4 else pair & 15
    return levels, steps, offsets


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_packed_bytes_are_levels_times_steps_less_offsets_and_never_beyond_int8(k: int, n: int) -> None:
    weight = weights(k, n)
    packed, scale = pack_int4_weight(weight)
    assert packed.shape == int4_packed_shape(k, n)
    assert packed.dtype == np.int8 and scale.dtype == np.float32
    assert scale.tobytes() == channel_scale(weight).tobytes()
    levels, steps, offsets = unpacked(packed, k, n)
    values = levels * steps - offsets
    assert np.abs(values).max() <= 127
    assert steps.min() >= 1
    np.testing.assert_array_equal(rounded_to_int4(weight), values.astype(np.float32) * scale)


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_the_first_row_of_a_panel_holds_the_sums_of_its_channels_without_what_the_matrix_does_not_fill(k: int, n: int) -> None:
    packed, _ = pack_int4_weight(weights(k, n))
    levels, steps, offsets = unpacked(packed, k, n)
    sums = np.ascontiguousarray(packed[:, 0]).view("<i4").ravel()
    assert sums[:n].tolist() == (levels * steps - offsets).sum(axis=0).tolist()
    assert not sums[n:].any()


def test_a_missing_second_block_and_channels_beyond_the_last_are_zero() -> None:
    packed, _ = pack_int4_weight(weights(70, 20))
    assert packed.shape == (2, 1 + 2 + 3 * 4, 64)  # sums, ends of three blocks, their levels
    ends = packed[:, 1:3].reshape(2, 4, 2, 16)
    assert ends[0, :3].any(axis=(1, 2)).all()
    assert not ends[:, 3].any()
    assert not ends[1, :, :, 4:].any()
    assert not packed[1, 3:].reshape(-1, 16, 4)[:, 4:].any()


def test_inputs_that_a_block_lacks_widen_no_step() -> None:
    weight = weights(33, 16)
    weight[32] = np.abs(weight).max(axis=0)  # 127 of the channel's scale, alone in its block: far from zero
    np.testing.assert_allclose(rounded_to_int4(weight)[32], weight[32], rtol=1e-6)


def test_what_lies_inside_the_range_of_a_block_is_off_by_half_its_step_at_most() -> None:
    weight = weights(320, 64)
    packed, scale = pack_int4_weight(weight)
    levels, steps, offsets = unpacked(packed, *weight.shape)
    lowest, highest = np.maximum(-127, -offsets), np.minimum(127, 15 * steps - offsets)
    exact = weight / scale
    inside = (exact >= lowest) & (exact <= highest - steps)
    assert inside.mean() > 0.8
    assert (np.abs(levels * steps - offsets - exact)[inside] <= steps[inside] / 2 + 1e-3).all()


def test_weights_that_were_stored_in_such_blocks_before_lose_nothing() -> None:
    steps, offsets = np.array([16, 3, 1]).repeat(32)[:, None], np.array([127, 20, -5]).repeat(32)[:, None]
    levels = np.random.default_rng(0).integers(0, 16, (96, 8))
    levels[::32], levels[1::32] = 0, 15
    weight = ((levels * steps - offsets) * 0.25).astype(np.float32)
    assert rounded_to_int4(weight).tobytes() == weight.tobytes()


def test_more_blocks_make_a_smaller_error_than_8_levels_of_a_channel() -> None:
    weight = weights(256, 32)
    scale = np.abs(weight).max(axis=0) / 7
    coarse = np.rint(weight / scale) * scale
    assert np.square(rounded_to_int4(weight) - weight).sum() < 0.3 * np.square(coarse - weight).sum()


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = weights(40, 3)
    weight[:, 1] = 0
    packed, scale = pack_int4_weight(weight)
    levels, steps, offsets = unpacked(packed, 40, 3)
    assert not (levels * steps - offsets)[:, 1].any()
    assert scale[1] == 0 and scale[[0, 2]].all()
    assert not rounded_to_int4(weight)[:, 1].any()


def test_a_weight_that_lies_transposed_is_rounded_alike() -> None:
    weight = weights(70, 20)
    stored = np.ascontiguousarray(weight.T)
    assert rounded_to_int4(stored.T).tobytes() == rounded_to_int4(weight).tobytes()
    assert pack_int4_weight(stored.T)[0].tobytes() == pack_int4_weight(weight)[0].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [pack_int4_weight, rounded_to_int4])
def test_a_weight_that_is_no_number_is_refused_by_channel(value: float, make: Any) -> None:
    weight = weights(40, 3)
    weight[5, 2] = value
    with pytest.raises(UnsupportedModel, match="output channel 2 has a weight that is NaN or infinite"):
        make(weight)
