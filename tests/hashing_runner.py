"""A stand-in for the model that makes every mistake of bookkeeping visible in its tokens."""

from __future__ import annotations

import copy
import functools

import numpy as np
import numpy.typing as npt

from fastserve.errors import StepFailed
from fastserve.worker.batch import ForwardBatch
from fastserve.worker.kv_cache import KVCache

VOCAB_SIZE = 97


class HashingRunner:
    """A "model" whose next token is a hash of every token of its context, *read back through the block table*.

    It writes each input token into the slot it was given and reads the context out of the pool again, so a wrong slot, a
    stale block, a lost token or a neighbour's write changes the answer. Works on a KVCache of one head of size one.
    """

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        self.vocab_size = vocab_size
        self.batches: list[ForwardBatch] = []
        self.failures: list[StepFailed] = []
        """Raised by the next runs, one each, after the pool was half written."""

    def run(self, batch: ForwardBatch, kv_cache: KVCache) -> npt.NDArray[np.float32]:
        self.batches.append(copy.deepcopy(batch))  # the next one may be in the same arrays
        memory = kv_cache.keys[0]  # [num_blocks, 1, 1, block_size]
        for row, slot in enumerate(batch.slot_mapping.tolist()):
            if slot >= 0:
                memory[slot // kv_cache.block_size, 0, 0, slot % kv_cache.block_size] = batch.input_ids[row]
        if self.failures:
            raise self.failures.pop(0)
        ends = batch.cumulative_sequence_length[1:].tolist()
        logits = np.empty((batch.num_rows, self.vocab_size), np.float32)
        for out, row in zip(logits, batch.logits_rows.tolist(), strict=True):
            sequence = next(index for index, end in enumerate(ends) if row < end)
            start = int(batch.cumulative_sequence_length[sequence])
            length = int(batch.past_seqlens[sequence]) + row - start + 1
            blocks = batch.block_table[sequence, : -(-length // kv_cache.block_size)]
            context = memory[blocks, 0, 0].reshape(-1)[:length].astype(np.uint64)
            out[:] = hash_logits(context, self.vocab_size)
        return logits


def hash_logits(context: npt.ArrayLike, vocab_size: int = VOCAB_SIZE) -> npt.NDArray[np.float32]:
    """The logits of :class:`HashingRunner` for a context: one of 100,000 rows, chosen by every token and its place."""
    (table, weights), tokens = _hash_tables(vocab_size), np.asarray(context, np.uint64)
    state = int(((tokens + np.uint64(1)) * weights[: tokens.size]).sum()) >> 24  # modulo 2^64
    row, shift = divmod(state, vocab_size)
    return table[row % len(table)][shift : shift + vocab_size]


@functools.cache
def _hash_tables(vocab_size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint64]]:
    """Rows of random logits, each twice in a row so that any rotation is a slice; a random odd number for each position."""
    rng = np.random.default_rng(17)
    table = rng.standard_normal((1021, vocab_size)).astype(np.float32)
    return np.tile(table, 2), rng.integers(2**63, 2**64 - 1, 4096, np.uint64, endpoint=True) | np.uint64(1)
