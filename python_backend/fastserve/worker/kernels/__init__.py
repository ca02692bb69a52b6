"""The custom-op library (domain ``fastserve``, on CPU), for ``SessionOptions.register_custom_ops_library``.

The C++ sources lie beside this file and are built by CMake when the package is installed; nothing is compiled at run time.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from fastserve.errors import ToolError

LIBRARY_FILE = "libfastserve_ops.so"


def library_path() -> Path:
    """The built library. Raises :class:`ToolError` when it was not built."""
    path = Path(__file__).parent / LIBRARY_FILE
    if not path.is_file():
        raise ToolError(f"{path}: not built; `pip install -e .` in the source folder builds it (needs a C++ compiler)")
    return path


def isa() -> str:
    """The instruction set of attention kernels created now: "avx512", "avx2" or "generic".

    The best this processor runs, or less when the environment variable ``FASTSERVE_ISA`` asks for less.
    """
    return _name_from_library("fastserve_isa")


def quantized_isa() -> str:
    """That of ``QuantizedMatMul``: "amx", "avx512vnni", "avx512", "avxvnni", "avx2" or "generic", from the best to the least."""
    return _name_from_library("fastserve_quantized_isa")


def _name_from_library(function_name: str) -> str:
    function = ctypes.CDLL(str(library_path()))[function_name]
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode("ascii")
