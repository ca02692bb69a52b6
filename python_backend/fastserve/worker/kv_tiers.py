"""The bytes of the tiers below the KV pool: an arena in memory and a file. Which slot belongs to whom is decided elsewhere
(``core/swapper.py``).

::

    pool:  an array for each layer's keys, values, ...     host: [slots, bytes_per_block]      file: the same, one slot after
           [num_blocks, ...]                                one row holds a block of all         the other
                                                            arrays, one after the other
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.core.swapper import Tier, Transfer
from fastserve.errors import ConfigError

Bytes = npt.NDArray[np.uint8]

FILE_BATCH = 16
"""Blocks that are gathered in memory on their way to or from the file."""


class KVTiers:
    """Copies blocks between the arrays of a pool and the tiers. Owned by the swap thread, which reads and writes only blocks
    that a transfer gave it.

    Works on any arrays whose first axis is the block. The arena is committed by the operating system on first touch. The file
    has no name: it is gone when the process is, however that ends.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], num_slots: Mapping[Tier, int], directory: Path | None = None) -> None:
        """``arrays``: of the pool, contiguous. ``directory``: of the file, which is as large as its slots at once; made if it is
        missing. Raises ConfigError when it cannot be made or the disk is too small."""
        self._pool = [array.reshape(len(array), -1).view(np.uint8) for array in arrays]  # [num_blocks, bytes]
        self.bytes_per_block = sum(array.shape[1] for array in self._pool)
        self._host: Bytes = np.zeros((num_slots.get(Tier.HOST, 0), self.bytes_per_block), np.uint8)
        self._file: int | None = None
        if num_slots.get(Tier.FILE, 0):
            self._file = _nameless_file(directory or Path(tempfile.gettempdir()), num_slots[Tier.FILE] * self.bytes_per_block)
            self._batch: Bytes = np.empty((FILE_BATCH, self.bytes_per_block), np.uint8)

    def copy(self, transfer: Transfer) -> None:
        """Move the bytes. Raises OSError when the file does not take or give them."""
        if transfer.tier is Tier.HOST:
            self._exchange(self._host, transfer.blocks, transfer.slots, transfer.outward)
            return
        for start in range(0, len(transfer.blocks), FILE_BATCH):
            blocks, slots = transfer.blocks[start : start + FILE_BATCH], transfer.slots[start : start + FILE_BATCH]
            rows = range(len(blocks))
            if transfer.outward:
                self._exchange(self._batch, blocks, rows, True)
            for row, slot in enumerate(slots):
                self._file_row(self._batch[row], slot, transfer.outward)
            if not transfer.outward:
                self._exchange(self._batch, blocks, rows, False)

    def _exchange(self, rows: Bytes, blocks: Sequence[int], indices: Sequence[int], outward: bool) -> None:
        """Between blocks of the pool and rows of ``rows`` [n, bytes_per_block]. numpy holds no lock while it copies."""
        chosen, places = list(blocks), list(indices)
        end = 0
        for array in self._pool:
            start, end = end, end + array.shape[1]
            if outward:
                rows[places, start:end] = array[chosen]
            else:
                array[chosen] = rows[places, start:end]

    def _file_row(self, row: Bytes, slot: int, outward: bool) -> None:
        assert self._file is not None
        view, offset = row.data, slot * self.bytes_per_block
        while view:
            count = os.pwrite(self._file, view, offset) if outward else os.preadv(self._file, [view], offset)
            if count == 0:
                raise OSError("the swap file is shorter than it was")
            view, offset = view[count:], offset + count

    def close(self) -> None:
        """Give the file back; nothing is copied afterwards."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _nameless_file(directory: Path, size: int) -> int:
    """A descriptor of a file of ``size`` bytes that no folder lists."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="fastserve-swap-", dir=directory)
    except OSError as error:
        raise ConfigError(f"swap_directory: got {directory}, allowed: a folder for a file ({error.strerror})") from None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        Path(name).unlink()
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            raise ConfigError(f"swap_file_bytes: got {size}, allowed: what {directory} has room for ({error.strerror})") from None
        undo.pop_all()
    return descriptor
