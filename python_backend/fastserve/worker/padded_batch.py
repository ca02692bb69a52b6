"""Padding for imported encoders: whole sequences, one a row, filled up on the right to the longest of the run.

::

    sequence              A: a0 a1 a2      B: b0
    input_ids             a0  a1  a2       b0  pad pad      int64 or int32 [batch, length]
    attention_mask         1   1   1        1   0   0
    token_type_ids         0   0   1        0   0   0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import TokenSequence
from fastserve.worker.encoder_batch import pack_sequences

PADDED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Everything an imported graph may take."""
INTEGER_TYPES = ("int64", "int32")
"""Element types its inputs may have."""


def pad_sequences(
    sequences: Sequence[TokenSequence], dtypes: Mapping[str, str], pad_token_id: int = 0
) -> dict[str, npt.NDArray[Any]]:  # each [batch, length]
    """The inputs of a graph for these sequences in this order. ``dtypes``: by input, of :data:`PADDED_INPUTS`.

    Raises ValueError when the token types of a sequence are not as many as its tokens.
    """
    lengths = np.array([len(sequence.token_ids) for sequence in sequences])
    real = np.arange(lengths.max()) < lengths[:, None]  # [batch, length]
    arrays = {"attention_mask": real.astype(np.int64)}
    padding = {name: value for name, value in (("input_ids", pad_token_id), ("token_type_ids", 0)) if name in dtypes}
    for name, tokens in pack_sequences(sequences, padding).items():  # [num_tokens], row after row as `real` has them
        arrays[name] = np.full(real.shape, padding[name], np.int64)
        arrays[name][real] = tokens
    return {name: arrays[name].astype(dtype, copy=False) for name, dtype in dtypes.items()}
