"""How a float weight is laid out for fastserve::PrepackedMatMul."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.worker.kernels.prepacked_weight import PANEL_COLUMNS, prepack_weight, prepacked_shape


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 31), (4, 32), (5, 33), (7, 96), (2, 100)])
def test_a_panel_has_its_columns_side_by_side_and_zeros_behind_the_last(k: int, n: int) -> None:
    weight = np.arange(1, k * n + 1, dtype=np.float32).reshape(k, n)
    packed = prepack_weight(weight)
    assert packed.shape == prepacked_shape(k, n)
    assert packed.dtype == np.float32 and packed.flags.c_contiguous
    side_by_side = packed.transpose(1, 0, 2).reshape(k, -1)
    np.testing.assert_array_equal(side_by_side[:, :n], weight)
    assert not side_by_side[:, n:].any()
    assert side_by_side.shape[1] - n < PANEL_COLUMNS


def test_a_weight_that_is_stored_the_other_way_round_is_packed_as_it_reads() -> None:
    stored = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
    np.testing.assert_array_equal(prepack_weight(stored.T), prepack_weight(np.ascontiguousarray(stored.T)))
