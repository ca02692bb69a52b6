"""fastserve::QuantizedMatMul (weights of 8 or 4 bits, int8 rows) beside ONNX Runtime's own float MatMul, by rows and layer.

One row is a decode, which is bound by reading the weights; many rows are a prefill or a batch of sentences, bound by arithmetic.
Rates are in 10^9 operations a second (a multiply-add is two), of what float MatMul would do. The contenders take turns on one
thread pool; medians. Prints a table and writes JSON:

    python benchmarks/bench_quantized_matmul.py [--isa NAME ...] [--layer PART] [--threads N] [--repeats N] [--output FILE]

``--isa``: instruction sets to compare (avx2, avxvnni, avx512, avx512vnni, amx), default the best. Float MatMul always uses the
best it knows, weights of 4 bits ("int4") the last of these. ``--layer``: only layers with this in their name.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from machine_rates import Array, bound_run, make_session, read_bandwidth
from matrix_layers import FLOAT, Layer
from onnx import TensorProto, helper, numpy_helper
from report import SEED, circumstances, kernel_arguments, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastserve.worker import kernels
from fastserve.worker.kernels.int4_weight import pack_int4_weight
from fastserve.worker.kernels.quantized_weight import pack_weight

ROWS = (1, 8, 32, 128, 512)
SHORTEST_S = 0.02
"""Of one timing: short runs are repeated that long."""
INT4 = "int4"
BYTES = {FLOAT: 4, INT4: 4.5 / 8}
"""Of a weight; others take one."""


LAYERS = (
    Layer("MiniLM attention", 384, 384),
    Layer("MiniLM up", 384, 1536),
    Layer("MiniLM down", 1536, 384),
    Layer("BERT base up", 768, 3072),
    Layer("SmolLM2-135M attention", 576, 576),
    Layer("SmolLM2-135M up", 576, 1536),
    Layer("SmolLM2-135M down", 1536, 576),
    Layer("SmolLM2-135M head", 576, 49152),
)


def product_session(node: onnx.NodeProto, constants: Mapping[str, Array]) -> ort.InferenceSession:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "output")]
    return make_session(helper.make_graph([node], "matmul", ends[:1], ends[1:], tensors), None)


def contenders(layer: Layer, instruction_sets: Sequence[str]) -> dict[str, ort.InferenceSession]:
    weight = np.random.default_rng(SEED).standard_normal((layer.k, layer.n), np.float32)
    sessions = {FLOAT: product_session(helper.make_node("MatMul", ["x", "weight"], ["output"]), {"weight": weight})}
    packed, scale = pack_weight(weight)
    inputs, sizes = ["x", "weight", "scale"], {"k": layer.k, "n": layer.n}
    node = helper.make_node("QuantizedMatMul", inputs, ["output"], domain="fastserve", **sizes)
    for name in instruction_sets:
        os.environ["FASTSERVE_ISA"] = name  # read when a kernel is created
        sessions[name] = product_session(node, {"weight": packed, "scale": scale})
    packed, scale = pack_int4_weight(weight)
    node = helper.make_node("QuantizedMatMul", inputs, ["output"], domain="fastserve", **sizes, weight_bits=4)
    sessions[INT4] = product_session(node, {"weight": packed, "scale": scale})
    return sessions


def alternate(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured in turns."""
    counts = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        counts[name] = max(1, int(SHORTEST_S / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()  # brings its weights back into the caches
            start = time.perf_counter()
            for _ in range(counts[name]):
                run()
            times[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def measure(layer: Layer, instruction_sets: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """One entry for each number of rows."""
    sessions = contenders(layer, instruction_sets)
    results = []
    for rows in ROWS:
        x = np.random.default_rng(SEED).standard_normal((rows, layer.k), np.float32)
        seconds = alternate({name: bound_run(session, {"x": x}) for name, session in sessions.items()}, repeats)
        operations = 2 * rows * layer.k * layer.n
        rates = {name: operations / value / 1e9 for name, value in seconds.items()}
        bytes_read = {name: layer.k * layer.n * BYTES.get(name, 1) / value / 1e9 for name, value in seconds.items()}
        results.append(dataclasses.asdict(layer) | {"rows": rows, "gigaops": rates, "weight_gigabytes_per_second": bytes_read})
    return results


def render(report: dict[str, Any]) -> Table:
    """Each contender's rate, and what it reads of the weights in a decode."""
    names = (*report["isa"], INT4)
    table = Table(title=f"fastserve::QuantizedMatMul, {report['threads']} threads, {report['processor']}; Gop/s")
    for column in ("layer", "matrix", "rows", FLOAT):
        table.add_column(column, justify="left" if column in ("layer", "matrix") else "right", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("gain", justify="right")
    for name in names:
        table.add_column(f"{name} reads", justify="right")
    for row in report["results"]:
        cells = [row["name"], f"{row['k']} x {row['n']}", str(row["rows"]), f"{row['gigaops'][FLOAT]:.0f}"]
        for name in names:
            rate = row["gigaops"][name]
            cells += [f"{rate:.0f}", f"{rate / row['gigaops'][FLOAT]:.1f}x"]
        if row["rows"] == 1:
            cells += [f"{row['weight_gigabytes_per_second'][name]:.1f} GB/s" for name in names]
        table.add_row(*cells, end_section=row["rows"] == ROWS[-1])
    return table


def main() -> None:
    parser = kernel_arguments(__doc__, "quantized_matmul.json", repeats=7)
    parser.add_argument("--isa", nargs="+", default=[kernels.quantized_isa()], metavar="NAME")
    parser.add_argument("--layer", default="", metavar="PART")
    arguments = parser.parse_args()
    ort.set_global_thread_pool_sizes(arguments.threads, 1)
    console = Console()
    layers = [layer for layer in LAYERS if arguments.layer in layer.name]
    report: dict[str, Any] = {
        **circumstances(arguments),
        "isa": arguments.isa,
        "read_gigabytes_per_second": read_bandwidth(arguments.threads, arguments.repeats),
        "results": [
            row
            for layer in track(layers, "measuring", console=console, transient=True)
            for row in measure(layer, arguments.isa, arguments.repeats)
        ],
    }
    console.print(render(report))
    console.print(f"reading from memory {report['read_gigabytes_per_second']:.1f} GB/s")
    write_json(report, arguments.output, console)


if __name__ == "__main__":
    main()
