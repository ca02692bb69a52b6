"""fastserve::PrepackedMatMul beside ONNX Runtime's own float MatMul, by rows and layer, with weights that no cache holds.

A decoder's weights are larger than a cache, so each iteration reads them from memory: one row is bound by that, a prefill by
arithmetic, a batch of decodes by both. Each contender is a graph of as many products of one layer's size as it takes to be
larger than a cache (``--cold-bytes``). They take turns on one thread pool; medians. Prints a table and writes JSON:

    python benchmarks/bench_prepacked_matmul.py [--isa NAME ...] [--rows N ...] [--threads N] [--repeats N] [--output FILE]

``--isa``: instruction sets to compare (generic, avx2, avx512), default the best. MatMul always uses the best it knows.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from machine_rates import Array, bound_run, make_session, read_bandwidth, seconds_of
from matrix_layers import FLOAT, Layer
from onnx import TensorProto, helper, numpy_helper
from report import SEED, circumstances, kernel_arguments, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastserve.worker import kernels
from fastserve.worker.kernels.prepacked_weight import prepack_weight

ROWS = (1, 4, 8, 28, 64, 256)
COLD_BYTES = 96 << 20


LAYERS = (
    Layer("SmolLM2-135M query, key, value", 576, 960),
    Layer("SmolLM2-135M output", 576, 576),
    Layer("SmolLM2-135M gate, up", 576, 3072),
    Layer("SmolLM2-135M down", 1536, 576),
    Layer("SmolLM2-135M head", 576, 49152),
    Layer("BERT base output", 768, 768),
    Layer("BERT base up", 768, 3072),
    Layer("BERT base down", 3072, 768),
)


def product_session(layer: Layer, weights: Sequence[Array], operator: str) -> ort.InferenceSession:
    """Of as many products of ``x`` as there are weights; the last is ``output``."""
    names = ["output", *(f"y{i}" for i in range(1, len(weights)))][::-1]
    sizes: dict[str, Any] = {"domain": "fastserve", "k": layer.k, "n": layer.n} if operator != FLOAT else {}
    nodes = [helper.make_node(operator, ["x", f"w{i}"], [name], **sizes) for i, name in enumerate(names)]
    tensors = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *names)]
    return make_session(helper.make_graph(nodes, "products", ends[:1], ends[1:], tensors), None)


def contenders(layer: Layer, instruction_sets: Sequence[str], cold_bytes: int) -> tuple[int, dict[str, ort.InferenceSession]]:
    """(products in a graph, session of each)."""
    count = -(-cold_bytes // (layer.k * layer.n * 4))
    random = np.random.default_rng(SEED)
    weights = [random.standard_normal((layer.k, layer.n), np.float32) for _ in range(count)]
    sessions = {FLOAT: product_session(layer, weights, FLOAT)}
    packed = [prepack_weight(weight) for weight in weights]
    for name in instruction_sets:
        os.environ["FASTSERVE_ISA"] = name  # read when a kernel is created
        sessions[name] = product_session(layer, packed, "PrepackedMatMul")
    return count, sessions


def measure(layer: Layer, arguments: Any) -> list[dict[str, Any]]:
    """One entry for each number of rows."""
    count, sessions = contenders(layer, arguments.isa, arguments.cold_bytes)
    results = []
    for rows in arguments.rows:
        x = np.random.default_rng(SEED).standard_normal((rows, layer.k), np.float32)
        runs = {name: bound_run(session, {"x": x}) for name, session in sessions.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.repeats + 1):
            for name, run in runs.items():
                seconds = seconds_of(run) / count
                if turn:
                    times[name].append(seconds)
        microseconds = {name: statistics.median(values) * 1e6 for name, values in times.items()}
        results.append(dataclasses.asdict(layer) | {"rows": rows, "microseconds": microseconds})
    return results


def render(report: dict[str, Any]) -> Table:
    """Microseconds of each, and what the best contender makes of the machine."""
    *_, best = report["isa"]
    table = Table(title=f"fastserve::PrepackedMatMul, {report['threads']} threads, {report['processor']}; us")
    for column in ("layer", "matrix", "rows", FLOAT):
        table.add_column(column, justify="left" if column in ("layer", "matrix") else "right", no_wrap=True)
    for name in report["isa"]:
        table.add_column(name, justify="right")
        table.add_column("gain", justify="right")
    table.add_column(f"{best}: GB/s", justify="right")
    table.add_column("GFLOP/s", justify="right")
    for row in report["results"]:
        times = row["microseconds"]
        cells = [row["name"], f"{row['k']} x {row['n']}", str(row["rows"]), f"{times[FLOAT]:.0f}"]
        for name in report["isa"]:
            cells += [f"{times[name]:.0f}", f"{times[FLOAT] / times[name]:.2f}x"]
        weights = row["k"] * row["n"] / times[best]  # millions a second
        cells += [f"{4 * weights / 1e3:.1f}", f"{2 * row['rows'] * weights / 1e3:.0f}"]
        table.add_row(*cells, end_section=row["rows"] == report["rows"][-1])
    return table


def main() -> None:
    parser = kernel_arguments(__doc__, "prepacked_matmul.json", repeats=7)
    parser.add_argument("--isa", nargs="+", default=[kernels.isa()], metavar="NAME")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="N")
    parser.add_argument("--layers", nargs="+", default=[""], metavar="PART", help="of the names of the layers to measure")
    parser.add_argument("--cold-bytes", type=int, default=COLD_BYTES, metavar="N", help="more than the caches hold")
    arguments = parser.parse_args()
    ort.set_global_thread_pool_sizes(arguments.threads, 1)
    console = Console()
    layers = [layer for layer in LAYERS if any(part in layer.name for part in arguments.layers)]
    report: dict[str, Any] = {
        **circumstances(arguments),
        "isa": arguments.isa,
        "rows": arguments.rows,
        "read_gigabytes_per_second": read_bandwidth(arguments.threads, arguments.repeats),
        "results": [
            row for layer in track(layers, "measuring", console=console, transient=True) for row in measure(layer, arguments)
        ],
    }
    console.print(render(report))
    console.print(f"reading from memory {report['read_gigabytes_per_second']:.1f} GB/s")
    write_json(report, arguments.output, console)


if __name__ == "__main__":
    main()
