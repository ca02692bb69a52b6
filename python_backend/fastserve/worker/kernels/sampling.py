"""Choosing tokens from rows of logits, in C++ (``sampling.h``). Stateless; other threads of Python run meanwhile.

Results depend on the row, the parameters and the number alone, and not on other rows or on the instruction set. Weights and
sums are doubles, as in NumPy, but summed in another order: a token differs from NumPy's only where the number falls within
rounding (about 1e-12) of the border between two tokens.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import numpy.typing as npt

from fastserve.worker.kernels import library_path

Logits = npt.NDArray[np.float32]


def largest_tokens(logits: Logits) -> npt.NDArray[np.int64]:
    """The id of each row's largest logit, the first of equals; -1 where it is not finite or a logit is NaN.

    ``logits``: [num_rows, vocab_size], contiguous. Returns [num_rows].
    """
    tokens = np.empty(len(logits), np.int64)
    _library().fastserve_largest_tokens(_address(logits), *logits.shape, tokens.ctypes.data)
    return tokens


def log_sum_exp(row: Logits) -> float:
    """The natural logarithm of the sum of e^logit of ``row``, [vocab_size]: a token's log-probability is its logit minus this."""
    return float(_library().fastserve_log_sum_exp(_address(row), len(row)))


def draw_token(row: Logits, temperature: float, top_k: int, top_p: float, min_p: float, number: float) -> int:
    """The token at quantile ``number`` (in [0, 1)) of the softmax of ``row / temperature``, in id order.

    ``row``: [vocab_size], contiguous; -inf excludes a token. Then top-k (0: off), top-p (1: off) and min-p (0: off) do. -1 when
    no token is left or the largest logit is not finite.
    """
    return int(_library().fastserve_draw_token(_address(row), len(row), temperature, top_k, top_p, min_p, number))


def _address(logits: Logits) -> int:
    if logits.dtype != np.float32 or not logits.flags.c_contiguous:
        raise ValueError(f"logits: got {logits.dtype} of strides {logits.strides}, allowed: contiguous float32")
    return int(logits.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    size, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    library.fastserve_largest_tokens.argtypes = (pointer, size, size, pointer)
    library.fastserve_largest_tokens.restype = None
    library.fastserve_log_sum_exp.argtypes = (pointer, size)
    library.fastserve_log_sum_exp.restype = number
    library.fastserve_draw_token.argtypes = (pointer, size, ctypes.c_float, size, number, number, number)
    library.fastserve_draw_token.restype = size
    return library
