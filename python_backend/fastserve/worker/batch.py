"""Packing for graphs with a KV pool: many sequences' tokens on one flat axis, never padded. (Encoders that keep nothing are
packed by ``encoder_batch.py``.)

::

    sequence            A (prefill 3)      B (decode)   C (chunk 2 of a prompt)
    input_ids           a0  a1  a2         b41          c8  c9        int64 [num_tokens]
    position_ids         0   1   2         41            8   9        int64 [num_tokens]
    cumulative_sequence_length  0  3  4  6                            int32 [num_seqs + 1]
    past_seqlens                0  41  8                              int32 [num_seqs]
    logits_rows                 2  3            rows that sample      int64 [num_rows]

A slot is ``block * block_size + offset``: the place of one token's key and value in every layer's pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceInput:
    """What one sequence brings to one iteration."""

    token_ids: Sequence[int]
    """The tokens to compute now: a prefill chunk, or one token to decode."""
    num_computed: int
    """Tokens of this sequence that are already in the pool."""
    block_table: Sequence[int]
    """Block ids that cover at least ``num_computed + len(token_ids)`` tokens; empty for the encoder of a seq2seq model."""
    samples: bool
    """Whether the logits of the last token are wanted."""
    prompt_rows: Sequence[int] = ()
    """Tokens before it, counted from the chunk's first, whose logits are wanted too."""
    num_cached: int = 0
    """Leading tokens of ``token_ids`` whose keys and values are in the pool already (a prefix hit that is run again
    for its logits only); their slots are -1 so that a shared block is never written."""
    cross_block_table: Sequence[int] = ()
    """Seq2seq: blocks that hold the encoder's keys and values for cross-attention."""
    cross_seqlen: int = 0
    """Seq2seq: source length in tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The per-iteration inputs of a graph, by their names in the graph contract. A graph takes the subset it declares."""

    input_ids: Int64Array  # [num_tokens]
    position_ids: Int64Array  # [num_tokens]
    cumulative_sequence_length: Int32Array  # [num_seqs + 1]
    past_seqlens: Int32Array  # [num_seqs]
    block_table: Int32Array  # [num_seqs, max_blocks]
    slot_mapping: Int32Array  # [num_tokens], -1: do not write
    logits_rows: Int64Array  # [num_rows]
    cross_block_table: Int32Array  # [num_seqs, max_cross_blocks]
    cross_seqlens: Int32Array  # [num_seqs]
    cross_slot_mapping: Int32Array  # [num_tokens], where an encoder writes its cross keys and values

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_rows(self) -> int:
        return len(self.logits_rows)


def pack(inputs: Sequence[SequenceInput], block_size: int, position_offset: int = 0) -> ForwardBatch:
    """Lay ``inputs`` out on one token axis, in the order given.

    ``position_offset`` is added to position_ids only (RoBERTa counts from 2); slots always follow the index in the
    sequence. Raises ValueError when a block table is too short for its tokens.
    """
    lengths = np.fromiter((len(item.token_ids) for item in inputs), np.int64, len(inputs))
    past = np.fromiter((item.num_computed for item in inputs), np.int64, len(inputs))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    num_tokens = int(ends[-1]) if len(inputs) else 0
    owner = np.repeat(np.arange(len(inputs)), lengths)  # sequence of each token
    index = np.arange(num_tokens) - starts[owner] + past[owner]  # index of each token in its sequence
    block_table = _block_table([item.block_table for item in inputs])
    return ForwardBatch(
        input_ids=_concatenate([item.token_ids for item in inputs], num_tokens),
        position_ids=index + position_offset,
        cumulative_sequence_length=np.concatenate(([0], ends)).astype(np.int32),
        past_seqlens=past.astype(np.int32),
        block_table=block_table,
        slot_mapping=_slots(inputs, owner, index, past, block_table, block_size),
        logits_rows=np.array(
            [row for item, start in zip(inputs, starts.tolist(), strict=True) for row in _rows(item, start)], np.int64
        ),
        cross_block_table=(cross_table := _block_table([item.cross_block_table for item in inputs])),
        cross_seqlens=np.array([item.cross_seqlen for item in inputs], np.int32),
        cross_slot_mapping=_slots_of(cross_table, owner, index, block_size),
    )


def _rows(item: SequenceInput, start: int) -> Iterator[int]:
    """Rows of the token axis whose logits a sequence wants, in order; ``start``: of its first token."""
    yield from (start + row for row in item.prompt_rows)
    if item.samples:
        yield start + len(item.token_ids) - 1


def _concatenate(parts: Sequence[Sequence[int]], total: int) -> Int64Array:
    return np.fromiter((value for part in parts for value in part), np.int64, total)


def _block_table(tables: Sequence[Sequence[int]]) -> Int32Array:
    """[num_seqs, max_blocks], unused places -1."""
    width = max((len(table) for table in tables), default=0)
    out = np.full((len(tables), width), -1, np.int32)
    for row, table in zip(out, tables, strict=True):
        row[: len(table)] = table
    return out


def _slots(
    inputs: Sequence[SequenceInput], owner: Any, index: Any, past: Any, block_table: Int32Array, block_size: int
) -> Int32Array:
    slots = _slots_of(block_table, owner, index, block_size)
    if any(item.block_table and item.num_computed + len(item.token_ids) > len(item.block_table) * block_size for item in inputs):
        raise ValueError("a block table does not cover its sequence's tokens")
    num_cached = np.fromiter((item.num_cached for item in inputs), np.int64, len(inputs))
    slots[index - past[owner] < num_cached[owner]] = -1
    return slots


def _slots_of(block_table: Int32Array, owner: Any, index: Any, block_size: int) -> Int32Array:
    """Slot of each token, -1 where its sequence has no block for it (encoders)."""
    block, offset = np.divmod(index, block_size)
    covered = block < block_table.shape[1]
    ids = np.full(len(index), -1, np.int64)
    ids[covered] = block_table[owner[covered], block[covered]]
    slots = np.where(ids >= 0, ids * block_size + offset, -1)
    return slots.astype(np.int32)
