"""Memory that ends where none may be touched."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class GuardedMemory:
    """Copies of arrays that end where memory that must not be touched begins, at addresses of any alignment."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def copy(self, array: Array) -> Array:
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        self._maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert self._protect(start + size, mmap.PAGESIZE, 0) == 0
        copied = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
        copied[...] = array
        return copied
