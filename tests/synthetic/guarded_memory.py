"""Memory that ends where none may be touched."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

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

    def run(self, session: ort.InferenceSession, feeds: dict[str, Array], shape: tuple[int, ...]) -> Array:
        """The float output, of ``shape``, of a session that reads and writes copies only."""
        binding = session.io_binding()
        for name, array in {name: self.copy(array) for name, array in feeds.items()}.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        output = self.copy(np.zeros(shape, np.float32))
        binding.bind_output("output", "cpu", 0, np.float32, output.shape, output.ctypes.data)
        session.run_with_iobinding(binding)
        return output
