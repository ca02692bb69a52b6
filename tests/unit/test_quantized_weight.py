"""How float weights become the packed int8 weight of fastserve::QuantizedMatMul."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.errors import UnsupportedModel
from fastserve.worker.kernels.quantized_weight import pack_weight, packed_shape, quantize_channels


def weights(k: int, n: int) -> np.ndarray:
    return np.random.default_rng([k, n]).standard_normal((k, n)).astype(np.float32)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (4, 16), (5, 17), (30, 40)])
def test_every_weight_lies_where_the_layout_says(k: int, n: int) -> None:
    quantized, scale = quantize_channels(weights(k, n))
    packed, packed_scale = pack_weight(weights(k, n))
    assert packed.shape == packed_shape(k, n)
    assert packed.dtype == np.int8
    assert packed_scale.tobytes() == scale.tobytes()
    for i in range(k):
        for channel in range(n):
            assert packed[channel // 16, 1 + i // 4, channel % 16 * 4 + i % 4] == quantized[i, channel]


def test_what_the_matrix_does_not_fill_is_zero() -> None:
    packed, _ = pack_weight(weights(5, 17))
    assert packed[0, 2].reshape(16, 4)[:, 0].all()
    assert not packed[0, 2].reshape(16, 4)[:, 1:].any()
    assert not packed[1, 1:].reshape(2, 16, 4)[:, 1:].any()


def test_the_first_row_of_a_panel_holds_the_sums_of_its_channels() -> None:
    quantized, _ = quantize_channels(weights(300, 20))
    packed, _ = pack_weight(weights(300, 20))
    sums = np.ascontiguousarray(packed[:, 0]).view("<i4").ravel()
    assert sums[:20].tolist() == quantized.sum(axis=0, dtype=np.int32).tolist()
    assert not sums[20:].any()


def test_the_largest_weight_of_a_channel_becomes_127_and_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = weights(50, 30) * np.exp(np.linspace(-20, 20, 30)).astype(np.float32)
    quantized, scale = quantize_channels(weight)
    assert (np.abs(quantized.astype(int)).max(axis=0) == 127).all()
    assert scale.dtype == np.float32
    assert (np.abs(weight - quantized * scale) <= scale * 0.501).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = weights(8, 3)
    weight[:, 1] = 0
    quantized, scale = quantize_channels(weight)
    assert not quantized[:, 1].any()
    assert scale[1] == 0
    assert scale[[0, 2]].all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused_by_channel(value: float) -> None:
    weight = weights(8, 3)
    weight[5, 2] = value
    with pytest.raises(UnsupportedModel, match="output channel 2 has a weight that is NaN or infinite"):
        pack_weight(weight)
