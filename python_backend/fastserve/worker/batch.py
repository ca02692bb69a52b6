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
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


class SequenceInput(NamedTuple):
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
    """One batch alone; see :meth:`Packer.pack`."""
    return Packer(block_size, position_offset).pack(inputs)


class Packer:
    """Packs the batches of one iteration after another. It keeps the block tables, because most of them are the same in the next
    iteration, and a table grows with its context."""

    def __init__(self, block_size: int, position_offset: int = 0) -> None:
        """``position_offset`` is added to position_ids only (RoBERTa counts from 2); slots always follow the index in the
        sequence."""
        self._block_size = block_size
        self._position_offset = position_offset
        self._tables = BlockTableRows()
        self._decodes: ForwardBatch | None = None  # of the last iteration that was nothing else

    def pack(self, inputs: Sequence[SequenceInput]) -> ForwardBatch:
        """Lay ``inputs`` out on one token axis, in the order given. The arrays may be overwritten by the next call. Those that
        are the same objects as before are as large as before.

        Raises ValueError when a block table is too short for its tokens.
        """
        block_table = self._tables.update([item.block_table for item in inputs])
        if (decodes := self._pack_decodes(inputs, block_table)) is not None:
            return decodes
        size = self._block_size
        for item in inputs:
            if item.num_computed + len(item.token_ids) > len(item.block_table) * size and item.block_table:
                raise ValueError("a block table does not cover its sequence's tokens")
        past = np.array([item.num_computed for item in inputs], np.int64)
        lengths = np.array([len(item.token_ids) for item in inputs], np.int64)
        return self._pack_any(inputs, past, lengths, block_table)

    def _pack_decodes(self, inputs: Sequence[SequenceInput], block_table: Int32Array) -> ForwardBatch | None:
        """Most iterations: one token of each sequence, whose logits are wanted; None if there is more to any of them. As long as
        their number stays, the arrays do, and those that nothing but it decides are not written again."""
        size = self._block_size
        tokens, past, slots = [], [], []
        for token_ids, computed, table, samples, prompt_rows, cached, cross_table, cross_seqlen in inputs:
            more = len(token_ids) != 1 or not samples or prompt_rows or cached or cross_table or cross_seqlen
            if more or computed >= len(table) * size:
                return None
            tokens.append(token_ids[0])
            past.append(computed)
            slots.append(table[computed // size] * size + computed % size)
        batch = self._decodes
        if batch is None or batch.block_table is not block_table:
            batch = self._decodes = _decodes_of(block_table)
        batch.input_ids[:] = tokens
        batch.past_seqlens[:] = past
        batch.slot_mapping[:] = slots
        np.add(batch.past_seqlens, self._position_offset, out=batch.position_ids)
        return batch

    def _pack_any(
        self, inputs: Sequence[SequenceInput], past: Int64Array, lengths: Int64Array, block_table: Int32Array
    ) -> ForwardBatch:
        ends = np.cumsum(lengths)
        starts = ends - lengths
        num_tokens = int(ends[-1]) if len(inputs) else 0
        owner = np.repeat(np.arange(len(inputs)), lengths)  # sequence of each token
        within = np.arange(num_tokens) - starts[owner]  # index of each token in its chunk
        index = within + past[owner]  # and in its sequence
        slots = _slots_of(block_table, owner, index, self._block_size)
        slots[within < np.array([item.num_cached for item in inputs], np.int64)[owner]] = -1
        cross_table = BlockTableRows().update([item.cross_block_table for item in inputs])
        rows = [row for item, start in zip(inputs, starts.tolist(), strict=True) for row in _rows(item, start)]
        return ForwardBatch(
            input_ids=np.fromiter(itertools.chain.from_iterable(item.token_ids for item in inputs), np.int64, num_tokens),
            position_ids=index + self._position_offset,
            cumulative_sequence_length=np.concatenate(([0], ends)).astype(np.int32),
            past_seqlens=past.astype(np.int32),
            block_table=block_table,
            slot_mapping=slots,
            logits_rows=np.array(rows, np.int64),
            cross_block_table=cross_table,
            cross_seqlens=np.array([item.cross_seqlen for item in inputs], np.int32),
            cross_slot_mapping=_slots_of(cross_table, owner, index, self._block_size),
        )


class BlockTableRows:
    """Block tables as one array. A row is written only when it changed."""

    _SPARE = 8
    """Columns beyond the longest table, so that the array need not be made anew whenever that grows."""

    def __init__(self) -> None:
        self._rows: Int32Array = np.empty((0, 0), np.int32)
        self._tables: list[Sequence[int]] = []  # what stands in each row
        self._given = self._rows  # the rows that were asked for last

    def update(self, tables: Sequence[Sequence[int]]) -> Int32Array:
        """[num_seqs, as many columns as the longest table has blocks, or more], unused places -1. The same object as long as its
        shape stays."""
        longest = max(map(len, tables), default=0)
        height, width = self._rows.shape
        if len(tables) > height or longest > width:
            spare = self._SPARE if self._tables else 0
            self._rows = np.full((max(len(tables), height), max(longest + spare, width)), -1, np.int32)
            self._tables = [()] * len(self._rows)
            self._given = self._rows
        for row, table in enumerate(tables):
            if table != (before := self._tables[row]):
                self._rows[row, : len(table)] = table
                self._rows[row, len(table) : len(before)] = -1
                self._tables[row] = list(table)
        if len(self._given) != len(tables):
            self._given = self._rows[: len(tables)]
        return self._given


def _decodes_of(block_table: Int32Array) -> ForwardBatch:
    """What is the same for all decodes of so many sequences; the rest is left open."""
    count = len(block_table)
    return ForwardBatch(
        input_ids=np.empty(count, np.int64),
        position_ids=np.empty(count, np.int64),
        cumulative_sequence_length=np.arange(count + 1, dtype=np.int32),
        past_seqlens=np.empty(count, np.int32),
        block_table=block_table,
        slot_mapping=np.empty(count, np.int32),
        logits_rows=np.arange(count),
        cross_block_table=np.empty((count, 0), np.int32),
        cross_seqlens=np.zeros(count, np.int32),
        cross_slot_mapping=np.full(count, -1, np.int32),
    )


def _rows(item: SequenceInput, start: int) -> Iterator[int]:
    """Rows of the token axis whose logits a sequence wants, in order; ``start``: of its first token."""
    yield from (start + row for row in item.prompt_rows)
    if item.samples:
        yield start + len(item.token_ids) - 1


def _slots_of(block_table: Int32Array, owner: Any, index: Any, block_size: int) -> Int32Array:
    """Slot of each token, -1 where its sequence has no block for it (encoders)."""
    block, offset = np.divmod(index, block_size)
    covered = block < block_table.shape[1]
    ids = np.full(len(index), -1, np.int64)
    ids[covered] = block_table[owner[covered], block[covered]]
    slots = np.where(ids >= 0, ids * block_size + offset, -1)
    return slots.astype(np.int32)
