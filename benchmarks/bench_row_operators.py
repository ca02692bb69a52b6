"""fastserve::RowNorm and fastserve::GatedActivation against the nodes of ONNX Runtime that they stand for.

    python benchmarks/bench_row_operators.py [--threads N] [--repeats N]

A norm is a residual sum and an RMSNorm; a gate is SiLU(gate) * value. Microseconds of one, the shortest of all repeats, in a
graph of many in a row.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper
from report import circumstances, kernel_arguments, write_json
from rich.console import Console
from rich.table import Table

from fastserve.worker import kernels

CHAIN = 20
SHAPES = ((1, 576), (32, 576), (256, 576), (256, 2048))
Nodes = list[NodeProto]


def norm_nodes(kind: str, index: int) -> Nodes:
    x, skip, y, total = f"x{index}", f"s{index}", f"x{index + 1}", f"s{index + 1}"
    if kind == "ours":
        return [helper.make_node("RowNorm", [x, "weight", "", skip], [y, total], domain="fastserve", epsilon=1e-5)]
    if kind == "one node":
        domain = "com.microsoft"
        inputs = [x, skip, "weight"]
        return [helper.make_node("SkipSimplifiedLayerNormalization", inputs, [y, "", "", total], domain=domain, epsilon=1e-5)]
    return [
        helper.make_node("Add", [x, skip], [total]),
        helper.make_node("SimplifiedLayerNormalization", [total, "weight"], [y], axis=-1, epsilon=1e-5),
    ]


def gate_nodes(kind: str, index: int) -> Nodes:
    both, y = "both", f"x{index + 1}"
    if kind == "ours":
        return [helper.make_node("GatedActivation", [both], [y], domain="fastserve", activation="silu")]
    names = [f"{part}{index}" for part in ("gate", "value", "sigmoid", "silu")]
    gate, value, sigmoid, silu = names
    return [
        helper.make_node("Split", [both], [gate, value], axis=-1, num_outputs=2),
        helper.make_node("Sigmoid", [gate], [sigmoid]),
        helper.make_node("Mul", [gate, sigmoid], [silu]),
        helper.make_node("Mul", [silu, value], [y]),
    ]


def microseconds(what: str, kind: str, shape: tuple[int, int], threads: int, repeats: int) -> float:
    rows, width = shape
    nodes = [node for index in range(CHAIN) for node in (norm_nodes if what == "norm" else gate_nodes)(kind, index)]
    names = ["x0", "s0"] if what == "norm" else ["both"]
    outputs = [f"x{CHAIN}", f"s{CHAIN}"] if what == "norm" else [f"x{index + 1}" for index in range(CHAIN)]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(np.ones(width, np.float32), "weight")] if what == "norm" else []
    graph = helper.make_graph(nodes, what, inputs, results, constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("com.microsoft", 1), ("fastserve", 1))]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(kernels.library_path()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    size = (rows, width) if what == "norm" else (rows, 2 * width)
    feeds = {name: np.random.default_rng(0).standard_normal(size).astype(np.float32) for name in names}
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(None, feeds)
        best = min(best, time.perf_counter() - started)
    return best / CHAIN * 1e6


def main() -> None:
    arguments = kernel_arguments(__doc__, "row_operators.json", repeats=100).parse_args()
    found = circumstances(arguments)
    table = Table(title=f"microseconds, {arguments.threads} threads")
    for column in ("operation", "rows", "width", "ours", "ONNX Runtime, separate nodes", "one node"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    figures = []
    for what in ("norm", "gate"):
        for shape in SHAPES:
            kinds = ("ours", "separate nodes", "one node") if what == "norm" else ("ours", "separate nodes")
            times = {kind: microseconds(what, kind, shape, arguments.threads, arguments.repeats) for kind in kinds}
            figures.append({"operation": what, "shape": shape, "microseconds": times})
            table.add_row(what, *map(str, shape), *(f"{value:.1f}" for value in times.values()))
    console = Console()
    console.print(table)
    write_json({**found, "figures": figures}, arguments.output, console)


if __name__ == "__main__":
    main()
