"""The weight of ``fastserve::PrepackedMatMul``: float32, in the order the kernels read it.

A panel is 32 columns; what is missing in the last one is zero. Rows of 128 bytes::

    panel 0   k0 | c0  | c1  | ... | c31 |
              k1 | c0  | c1  | ... | c31 |
              ...
    panel 1   k0 | c32 | ...

A kernel reads a panel from its beginning to its end, whatever its instruction set, so the file is used as it is mapped, and
processes share it. It is read fastest when the array starts at a multiple of 64 bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PANEL_COLUMNS = 32

FloatArray = npt.NDArray[np.float32]


def prepacked_shape(k: int, n: int) -> tuple[int, int, int]:
    """Shape of the packed weight of a [k, n] matrix: [num_panels, k, 32]."""
    return -(-n // PANEL_COLUMNS), k, PANEL_COLUMNS


def prepack_weight(weight: FloatArray) -> FloatArray:
    """``weight`` [k, n], to be multiplied from the left, as float32 of :func:`prepacked_shape`."""
    k, n = weight.shape
    panels, _, _ = prepacked_shape(k, n)
    packed = np.empty((panels, k, PANEL_COLUMNS), np.float32)
    whole = n // PANEL_COLUMNS
    packed[:whole] = weight[:, : whole * PANEL_COLUMNS].reshape(k, whole, PANEL_COLUMNS).transpose(1, 0, 2)
    if whole < panels:
        packed[whole] = 0
        packed[whole, :, : n - whole * PANEL_COLUMNS] = weight[:, whole * PANEL_COLUMNS :]
    return packed
