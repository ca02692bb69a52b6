"""How near the attention kernel comes to what the machine can do.

Decode is bound by reading the cache, so it is compared with the machine's read bandwidth; prefill is bound by arithmetic,
so it is compared with ONNX Runtime's own MatMul. Medians of several runs. Prints a table and writes JSON:

    python benchmarks/bench_attention.py [--threads N] [--repeats N] [--output benchmarks/results/attention.json]
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from report import SEED, circumstances, kernel_arguments, write_json
from rich.console import Console
from rich.table import Table

from fastserve.worker import kernels

Array = npt.NDArray[Any]
BLOCK_SIZE = 16
STORED = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}


@dataclasses.dataclass(frozen=True)
class Layer:
    """The attention of one layer of a known family of models."""

    name: str
    num_heads: int
    kv_num_heads: int
    head_size: int


LAYERS = (
    Layer("SmolLM2-135M", 9, 3, 64),
    Layer("GPT-2", 12, 12, 64),
    Layer("Llama-3.2-1B", 32, 8, 64),
    Layer("Qwen3-0.6B", 16, 8, 128),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """``num_seqs`` sequences that each have ``past`` tokens in the cache and ``new`` tokens to run."""

    name: str
    num_seqs: int
    past: int
    new: int


CASES = (Case("decode", 16, 1023, 1), Case("prefill", 1, 0, 512), Case("chunk", 1, 768, 256))


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_session(graph: onnx.GraphProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
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


def attention_feeds(layer: Layer, case: Case, kv_dtype: str) -> dict[str, Array]:
    """Random tokens, and sequences whose blocks are scattered over a pool that just holds them."""
    random = np.random.default_rng(SEED)
    tokens, length = case.num_seqs * case.new, case.past + case.new
    blocks = -(-length // BLOCK_SIZE)
    table = random.permutation(case.num_seqs * blocks).astype(np.int32).reshape(case.num_seqs, blocks)
    positions = np.arange(case.past, length)
    slots = table[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    dtype, heads, size = STORED[kv_dtype][1], layer.kv_num_heads, layer.head_size

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape, np.float32)

    return {
        "query": draw(tokens, layer.num_heads * size),
        "key": draw(tokens, heads * size),
        "value": draw(tokens, heads * size),
        "key_cache": draw(table.size, heads, size, BLOCK_SIZE).astype(dtype),
        "value_cache": draw(table.size, heads, BLOCK_SIZE, size).astype(dtype),
        "cumulative_sequence_length": np.arange(case.num_seqs + 1, dtype=np.int32) * case.new,
        "past_seqlens": np.full(case.num_seqs, case.past, np.int32),
        "block_table": table,
        "slot_mapping": slots.astype(np.int32).ravel(),
    }


def attention_graph(layer: Layer, kv_dtype: str) -> onnx.GraphProto:
    names = ["query", "key", "value", "key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens", "block_table"]
    types = dict.fromkeys(names[:3], TensorProto.FLOAT) | dict.fromkeys(names[3:5], STORED[kv_dtype][0])
    types |= dict.fromkeys([*names[5:], "slot_mapping"], TensorProto.INT32)
    attributes: dict[str, Any] = {"num_heads": layer.num_heads, "kv_num_heads": layer.kv_num_heads}
    node = helper.make_node("PagedAttention", [*names, "", "", "slot_mapping"], ["output"], domain="fastserve", **attributes)
    inputs = [helper.make_tensor_value_info(name, element_type, None) for name, element_type in types.items()]
    return helper.make_graph([node], "attention", inputs, [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)])


def measure(layer: Layer, case: Case, kv_dtype: str, threads: int, repeats: int) -> dict[str, float]:
    """Median time, cache bytes read a second and multiply-adds (as 2 operations) a second."""
    feeds = attention_feeds(layer, case, kv_dtype)
    seconds = median_seconds(bound_run(make_session(attention_graph(layer, kv_dtype), threads), feeds), repeats)
    read = case.num_seqs * (case.past + case.new) * layer.kv_num_heads * layer.head_size * 2 * feeds["key_cache"].itemsize
    pairs = case.num_seqs * (case.new * case.past + case.new * (case.new + 1) // 2)  # of a query and a position it sees
    operations = 4 * pairs * layer.num_heads * layer.head_size
    return {"milliseconds": seconds * 1e3, "gigabytes_per_second": read / seconds / 1e9, "gigaflops": operations / seconds / 1e9}


def read_bandwidth(threads: int, repeats: int) -> float:
    """GB/s at which ``threads`` threads together sum 256 MB."""
    parts = np.array_split(np.ones(64 << 20, np.float32), threads)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        seconds = median_seconds(lambda: list(pool.map(np.sum, parts)), repeats)
    return sum(part.nbytes for part in parts) / seconds / 1e9


def matmul_rate(threads: int, repeats: int) -> float:
    """GFLOP/s of ONNX Runtime's MatMul, [256, 1024] x [1024, 1024]."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("left", "right")]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("MatMul", ["left", "right"], ["output"])], "matmul", inputs, [output])
    feeds = {"left": np.ones((256, 1024), np.float32), "right": np.ones((1024, 1024), np.float32)}
    return 2 * 256 * 1024 * 1024 / median_seconds(bound_run(make_session(graph, threads), feeds), repeats) / 1e9


def render(report: dict[str, Any]) -> Table:
    """Each row beside what bounds it. Above 100 % of reading: part of the pool stayed in the processor's caches."""
    table = Table(title=f"fastserve::PagedAttention, {report['isa']}, {report['threads']} threads, {report['processor']}")
    for column in ("layer", "case", "cache", "ms", "rate", "of the machine's"):
        table.add_column(column, justify="right" if column in ("ms", "rate") else "left")
    for row in report["results"]:
        if row["case"] == "decode":
            rate, machine, unit, bound = row["gigabytes_per_second"], report["read_gigabytes_per_second"], "GB/s", "reading"
        else:
            rate, machine, unit, bound = row["gigaflops"], report["matmul_gigaflops"], "GFLOP/s", "MatMul"
        share = f"{rate / machine:4.0%} {bound}"
        table.add_row(row["layer"], row["case"], row["kv_dtype"], f"{row['milliseconds']:.2f}", f"{rate:.1f} {unit}", share)
    return table


def main() -> None:
    parser = kernel_arguments(__doc__, "attention.json", repeats=21)
    arguments = parser.parse_args()
    threads, repeats = arguments.threads, arguments.repeats
    report: dict[str, Any] = {
        **circumstances(arguments),
        "isa": kernels.isa(),
        "read_gigabytes_per_second": read_bandwidth(threads, repeats),
        "matmul_gigaflops": matmul_rate(threads, repeats),
        "results": [
            {**dataclasses.asdict(case), "layer": layer.name, "case": case.name, "kv_dtype": kv_dtype}
            | measure(layer, case, kv_dtype, threads, repeats)
            for layer in LAYERS
            for case in CASES
            for kv_dtype in STORED
        ],
    }
    console = Console()
    console.print(render(report))
    console.print(f"reading {report['read_gigabytes_per_second']:.1f} GB/s, MatMul {report['matmul_gigaflops']:.0f} GFLOP/s")
    write_json(report, arguments.output, console)


if __name__ == "__main__":
    main()
