"""What a machine can do at best, as the benchmarks of kernels measure it, and how they run one node."""

from __future__ import annotations

import concurrent.futures
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from threadpoolctl import threadpool_limits

from fastserve.worker import kernels
from fastserve.worker.device import pool_array

Array = npt.NDArray[Any]
READ_BYTES = 256 << 20
MATMUL_OPERATIONS = 2 * 256 * 1024 * 1024
"""Of [256, 1024] x [1024, 1024]."""


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    return statistics.median(seconds_of(run) for _ in range(repeats))


def make_session(graph: onnx.GraphProto, threads: int | None) -> ort.InferenceSession:
    """``threads``: of its own; None: those that all such sessions share (``ort.set_global_thread_pool_sizes``), because a pool of
    each would go on spinning in the next contender's turn."""
    options = ort.SessionOptions()
    if threads is None:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(kernels.library_path()))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("fastserve", 1), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound_run(session: ort.InferenceSession, feeds: dict[str, Array]) -> Callable[[], None]:
    """A function that runs the session on these arrays, bound once and in place."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    binding.bind_output("output", "cpu")

    def run(kept: dict[str, Array] = feeds) -> None:  # the binding knows addresses only
        session.run_with_iobinding(binding)

    return run


class Reading:
    """Called, ``threads`` threads read :data:`READ_BYTES` in huge pages: each the dot product of its part with itself."""

    def __init__(self, threads: int) -> None:
        memory = pool_array((READ_BYTES // 4,), np.float32)
        memory[:] = 1
        self._parts = np.array_split(memory, threads)
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        threadpool_limits(1)

    def __call__(self) -> None:
        list(self._pool.map(lambda part: np.dot(part, part), self._parts))


def matmul_run(threads: int) -> Callable[[], None]:
    """Called, ONNX Runtime does one MatMul of :data:`MATMUL_OPERATIONS`."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("left", "right")]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("MatMul", ["left", "right"], ["output"])], "matmul", inputs, [output])
    feeds = {"left": np.ones((256, 1024), np.float32), "right": np.ones((1024, 1024), np.float32)}
    return bound_run(make_session(graph, threads), feeds)


def read_bandwidth(threads: int, repeats: int) -> float:
    """GB/s of :class:`Reading`."""
    return READ_BYTES / median_seconds(Reading(threads), repeats) / 1e9


def matmul_rate(threads: int, repeats: int) -> float:
    """GFLOP/s of :func:`matmul_run`."""
    return MATMUL_OPERATIONS / median_seconds(matmul_run(threads), repeats) / 1e9
