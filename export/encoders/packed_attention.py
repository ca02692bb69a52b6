"""The nodes of a packed encoder that know sequences: attention inside each of them, and the mean of each."""

from __future__ import annotations

import dataclasses

import torch

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import DOMAIN, NO_WINDOW, AttentionLayer

ATTENTION = "PackedAttention"
SEGMENT_MEAN = "SegmentMean"


@dataclasses.dataclass(frozen=True, slots=True)
class PackedInputs:
    """What the attention of an encoder's graph reads: where sequences begin and end."""

    cumulative_sequence_length: torch.Tensor  # int32 [num_seqs + 1]

    def emit(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        head_sink: torch.Tensor | None,
    ) -> torch.Tensor:
        """A PackedAttention node. Raises UnsupportedModel for a soft cap, and for sinks."""
        if head_sink is not None:
            raise UnsupportedModel(f"cannot represent attention sinks (in attention layer {layer.index})")
        if layer.softcap:
            raise UnsupportedModel(f"cannot represent a soft cap (of {layer.softcap:g}, in attention layer {layer.index})")
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ATTENTION}",
            [query, key, value, self.cumulative_sequence_length],
            {
                "num_heads": layer.num_heads,
                "kv_num_heads": layer.kv_num_heads,
                "scale": layer.scale,
                "local_window_size": reach(layer),
            },
            dtype=query.dtype,
            shape=query.shape,
            version=1,
        )


def reach(layer: AttentionLayer) -> int:
    """The operator's ``local_window_size``: how many tokens to each side are seen. The interface's window counts the token
    itself, and is therefore one more."""
    return NO_WINDOW if layer.window == NO_WINDOW else layer.window - 1


def segment_mean(rows: torch.Tensor, cumulative_sequence_length: torch.Tensor) -> torch.Tensor:
    """Mean of each sequence's rows: [num_tokens, n] -> [num_seqs, n], a SegmentMean node."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{SEGMENT_MEAN}",
        [rows, cumulative_sequence_length],
        {},
        dtype=rows.dtype,
        shape=(cumulative_sequence_length.shape[0] - 1, rows.shape[1]),
        version=1,
    )
