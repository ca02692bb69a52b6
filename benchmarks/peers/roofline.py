"""What the workload must cost on this machine, and how near to that FastServe is.

The floor is summed up step by step, at the tokens each step really has: the linear layers and the head at the rate that ONNX
Runtime's own matrix products reach here at that many rows, on the model's shapes and on weights that come from memory; the KV
pool at the bandwidth reads reach here. Norms, activations, Python and Triton are free in it.

    make bench-roofline
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import numpy as np
import onnxruntime as ort
import workload
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from rows import HERE, rows

from fastserve.config import EngineConfig
from fastserve.core.block_pool import BlockPool
from fastserve.core.cost_model import CostModel
from fastserve.core.planner import StepLimits
from fastserve.core.policy import make_policy
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of rows at which products are timed; between them times are interpolated."""
REPEATS = 5
READ_BYTES = 1 << 29
LAYERS_TIMED = 10
"""Layers with weights of their own: more than any cache holds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=Path(".demo/peers/models/checkpoint"))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "peers")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    config = json.loads((arguments.checkpoint / "config.json").read_text(encoding="utf-8"))
    items = workload.load(arguments.results / f"workload.{compare.AT_ONCE}.json")
    steps = step_sizes([(len(item.prompt), item.output_tokens) for item in items])
    bandwidth = read_bandwidth(arguments.threads)
    console.print(
        f"{len(steps)} steps of {np.mean([tokens for tokens, _, _ in steps]):.0f} tokens; reads {bandwidth / 1e9:.1f} GB/s"
    )
    measured = compare.table(compare.AT_ONCE, arguments.results)
    table = Table(title="The floor of the workload, seconds")
    for column in ("precision", "linear", "head", "KV reads", "floor", "tokens/s at the floor", "row", "tokens/s", "share"):
        table.add_column(column, justify="right")
    for precision in ("fp32", "int8"):
        parts = floor(steps, config, precision, bandwidth, arguments.threads)
        best = sum(item.output_tokens for item in items) / sum(parts)
        cells = [precision, *(f"{part:.2f}" for part in parts), f"{sum(parts):.2f}", f"{best:.1f}"]
        for row in rows():
            found = measured[row]
            if row.ours and row.precision == precision and isinstance(found, dict):
                rate = found["tokens_per_s"]
                table.add_row(*cells, row.engine.name, f"{rate:.1f}", f"{rate / best:.0%}")
                cells = [""] * len(cells)
    console.print(table)


def step_sizes(lengths: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Of each step of the real scheduler with its defaults, all requests at once: tokens, rows of logits, context tokens read."""
    defaults = EngineConfig()
    limits = StepLimits(defaults.max_num_seqs, defaults.max_batched_tokens)
    costs = CostModel(0.0, 1.0, max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens)
    longest = max(prompt + output for prompt, output in lengths) + 1
    pool = BlockPool(limits.max_num_seqs * (longest // defaults.block_size + 1), defaults.block_size)
    scheduler = Scheduler(
        limits, pool, make_policy("fcfs", costs, inner="fcfs"), max_model_len=longest, max_queue_size=len(lengths)
    )
    for index, (prompt, output) in enumerate(lengths):
        scheduler.add(Request(index, (0,) * prompt, SamplingParams(max_tokens=output, temperature=0.0)), 0.0)
    return list(_walk(scheduler))


def _walk(scheduler: Scheduler) -> Any:
    from fastserve.core.plan import SampledToken

    while len(scheduler):
        plan = scheduler.plan(0.0)
        context = sum(chunk.sequence.num_computed + chunk.num_tokens for chunk in plan.chunks)
        yield plan.num_tokens, len(plan.sampling), context
        with scheduler.reserve(plan) as reservation:
            reservation.commit([SampledToken(0)] * len(reservation.drawing_sequences), started=0.0, ended=0.0)


def floor(
    steps: list[tuple[int, int, int]], config: dict[str, Any], precision: str, bandwidth: float, threads: int
) -> list[float]:
    """Seconds of all steps: linear layers, head, reads of the KV pool (fp32)."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    shapes = [(hidden, (heads + 2 * kv_heads) * size), (heads * size, hidden)]
    shapes += [(hidden, 2 * config["intermediate_size"]), (config["intermediate_size"], hidden)]
    linear = times(shapes * LAYERS_TIMED, precision, threads)
    head = times([(hidden, config["vocab_size"])], precision, threads)
    kv_bytes = 2 * layers * kv_heads * size * 4
    return [
        sum(np.interp(tokens, ROWS, linear) for tokens, _, _ in steps) * layers / LAYERS_TIMED,
        sum(np.interp(rows, (0, *ROWS), (0.0, *head)) for _, rows, _ in steps),
        sum(context for _, _, context in steps) * kv_bytes / bandwidth,
    ]


def times(shapes: list[tuple[int, int]], precision: str, threads: int) -> list[float]:
    """Median seconds of one product with each of the weights, for each number of rows in :data:`ROWS`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(_products(shapes, precision).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [_median(lambda rows=rows: session.run(None, _feeds(shapes, rows))) for rows in ROWS]  # type: ignore[misc]


def _feeds(shapes: list[tuple[int, int]], rows: int) -> dict[str, Any]:
    return {f"x{width}": np.ones((rows, width), np.float32) for width, _ in shapes}


def _products(shapes: list[tuple[int, int]], precision: str) -> ModelProto:
    """Each product's largest element is its output, so that nothing of size leaves the graph."""
    chance, nodes, weights = np.random.default_rng(0), [], []
    for number, (width, height) in enumerate(shapes):
        if precision == "fp32":
            weights.append(numpy_helper.from_array(chance.standard_normal((width, height), np.float32), f"w{number}"))
            nodes.append(helper.make_node("MatMul", [f"x{width}", f"w{number}"], [f"y{number}"]))
        else:
            whole = chance.integers(-63, 64, (width, height), np.int8)
            weights.append(numpy_helper.from_array(whole, f"w{number}"))
            weights.append(numpy_helper.from_array(np.ones(height, np.float32), f"s{number}"))
            inputs = [f"x{width}", f"w{number}", f"s{number}"]
            nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, [f"y{number}"], domain="com.microsoft"))
    outputs = [
        helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, ["rows", height])
        for number, (_, height) in enumerate(shapes)
    ]
    inputs = [
        helper.make_tensor_value_info(f"x{width}", TensorProto.FLOAT, ["rows", width]) for width in {width for width, _ in shapes}
    ]
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def read_bandwidth(threads: int) -> float:
    """Bytes a second of reading memory with ``threads`` threads."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [np.ones(READ_BYTES // threads // 4, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / _median(lambda: list(pool.map(np.sum, arrays)))  # numpy lets go of the GIL


def _median(action: Callable[[], Any]) -> float:
    action()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
