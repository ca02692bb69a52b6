"""Where a model computes and its KV pool lies: the one place where a GPU differs from a CPU.

What is here for CUDA was never executed by its authors, who have no such GPU. The tests execute :class:`OrtDevice` on the CPU.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastserve.errors import ConfigError
from fastserve.manifest import CUDA, ModelManifest
from fastserve.worker.session import CPU_PROVIDERS, Providers, SessionSettings, create_session

CUDA_PROVIDER = "CUDAExecutionProvider"
OLDEST_FOR_CUDA = (1, 32)
"""ONNX Runtime whose PagedAttention is known to take every input that the graphs have."""
COPY_ROLE = "copy_blocks"
"""Role of the graph that copies blocks inside one array of a pool. In: ``cache`` [num_blocks, ...], ``sources`` int64 [n],
``targets`` int64 [n, 1]; out: ``copied``, bound to the memory of ``cache``."""


class Device(Protocol):
    """What a session runs on. Owned by the engine thread."""

    providers: Providers
    """ONNX Runtime's execution providers, preferred first, with their options."""

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        """An array in the device's memory."""
        ...

    def bind(self, binding: Any, name: str, array: Any) -> None:
        """Make an array of :meth:`zeros` an input of a session's runs; it is read and written in place."""
        ...

    def copy_rows(self, array: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows of an array's first axis; none stands on both sides."""
        ...


class Host:
    """The processor and its memory; arrays are numpy's."""

    def __init__(self) -> None:
        self.providers = CPU_PROVIDERS

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        return pool_array(shape, dtype)

    def bind(self, binding: Any, name: str, array: npt.NDArray[Any]) -> None:
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def copy_rows(self, array: npt.NDArray[Any], sources: Sequence[int], targets: Sequence[int]) -> None:
        array[list(targets)] = array[list(sources)]


def pool_array(shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Zeros for a pool, committed on first touch, in huge pages where the system has them.

    The attention op reads blocks in any order: with small pages looking up their addresses takes longer than reading them.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


HOST = Host()


class OrtDevice:
    """Memory that ONNX Runtime allocates; arrays are its OrtValues. Copies inside it are runs of a small graph, because ONNX
    Runtime has no other way to move a part of an OrtValue."""

    def __init__(self, name: str, number: int, provider: str, copy_graph: Path) -> None:
        """``name`` and ``number``: as ONNX Runtime knows the device, "cuda" and which one. ``copy_graph``: the file of
        :data:`COPY_ROLE`."""
        self._name, self._number = name, number
        options = {"device_id": str(number)} if provider == CUDA_PROVIDER else {}
        self.providers: Providers = ((provider, options),)
        self._copy_graph = copy_graph
        self._copy: ort.InferenceSession | None = None

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        # From the host: memory that ONNX Runtime allocates is not cleared, and a NaN in it would survive every mask.
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), self._name, self._number)

    def bind(self, binding: Any, name: str, array: Any) -> None:
        binding.bind_ortvalue_input(name, array)

    def copy_rows(self, array: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        if self._copy is None:
            self._copy = create_session(self._copy_graph, SessionSettings(num_threads=1, providers=self.providers))
        binding = self._copy.io_binding()
        binding.bind_ortvalue_input("cache", array)
        binding.bind_cpu_input("sources", np.array(sources, np.int64))
        binding.bind_cpu_input("targets", np.array(targets, np.int64)[:, None])
        binding.bind_ortvalue_output("copied", array)
        self._copy.run_with_iobinding(binding)


def device_of(manifest: ModelManifest, directory: Path, number: int = 0) -> Device:
    """The device that a model was exported for. ``directory``: its version folder. ``number``: which of several.

    Raises ConfigError when ONNX Runtime has no such device here.
    """
    if manifest.model.device != CUDA:
        return HOST
    available = ort.get_available_providers()
    if CUDA_PROVIDER not in available:
        raise ConfigError(
            f"the model was exported for {CUDA}; the ONNX Runtime here has no {CUDA_PROVIDER}, only {', '.join(available)}: "
            "install onnxruntime-gpu in place of onnxruntime (pip install 'triton-fastserve[cuda]') beside an NVIDIA driver, or "
            "export with --device cpu"
        )
    (copy_graph,) = manifest.graphs[COPY_ROLE].files.values()
    if tuple(map(int, ort.__version__.split(".")[:2])) < OLDEST_FOR_CUDA:
        wanted = ".".join(map(str, OLDEST_FOR_CUDA))
        raise ConfigError(
            f"the model was exported for {CUDA} and needs onnxruntime-gpu {wanted} or newer; here is {ort.__version__}"
        )
    return OrtDevice(CUDA, number, CUDA_PROVIDER, directory / copy_graph)
