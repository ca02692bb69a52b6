"""What the workload must cost on this machine, and how near to that FastServe is.

The floor is summed up step by step, at the tokens each step really has: the linear layers and the head at the best rate that any
matrix product known here reaches at that many rows (ONNX Runtime's or FastServe's own), on the model's shapes and on
weights that come from memory; the KV pool at the bandwidth reads reach here. Norms, activations, the products inside attention,
Python and Triton are free in it.

    make bench-roofline
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import workload
from fastserve_peer import NAME
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rich.table import Table
from rows import HERE, rows
from threadpoolctl import threadpool_limits

from fastserve.config import EngineConfig, parse_config
from fastserve.core.admission import QueueLimits
from fastserve.core.block_pool import BlockPool
from fastserve.core.cost_model import CostModel
from fastserve.core.policy import make_policy
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts
from fastserve.manifest import ModelManifest
from fastserve.tools.model_config import parameters_of_version
from fastserve.worker import kernels
from fastserve.worker.kernels.prepacked_weight import prepack_weight
from fastserve.worker.kernels.quantized_weight import pack_weight
from fastserve.worker.kv_cache import bytes_per_block

Array = npt.NDArray[Any]
Product = Callable[[int, Array], tuple[NodeProto, list[TensorProto]]]
"""A node with the output ``y`` and a number, and its constants, from that number and a weight [inputs, outputs]."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of rows at which products are timed; between them times are interpolated."""
REPEATS = 5
READ_BYTES = 1 << 29


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, default=compare.folder_of(compare.REAL_MODEL, Path(".demo/peers")))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "peers" / compare.REAL_MODEL)
    arguments = parser.parse_args()
    config = json.loads((arguments.models / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    items = workload.load(arguments.results / f"workload.{compare.AT_ONCE}.json")
    steps = step_sizes([(len(item.prompt), item.output_tokens) for item in items])
    bandwidth = read_bandwidth(arguments.threads)
    compare.console.print(
        f"{len(steps)} steps of {np.mean([tokens for tokens, _, _ in steps]):.0f} tokens; reads {bandwidth / 1e9:.1f} GB/s"
    )
    measured = compare.table(compare.AT_ONCE, arguments.results)
    table = Table(title="The floor of the workload, seconds")
    for column in ("precision", "linear", "head", "KV reads", "floor", "tokens/s at the floor", "row", "tokens/s", "share"):
        table.add_column(column, justify="right")
    for precision in ("fp32", "int8"):
        parts = floor(steps, config, precision, arguments.threads)
        parts.append(context_seconds(steps, arguments.models / f"fastserve-{precision}", bandwidth))
        best = sum(item.output_tokens for item in items) / sum(parts)
        cells = [precision, *(f"{part:.2f}" for part in parts), f"{sum(parts):.2f}", f"{best:.1f}"]
        for row in rows():
            found = measured[row]
            if row.ours and row.precision == precision and isinstance(found, dict):
                rate = found["tokens_per_s"]
                table.add_row(*cells, row.engine.name, f"{rate:.1f}", f"{rate / best:.0%}")
                cells = [""] * len(cells)
    compare.console.print(table)


def step_sizes(lengths: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Of each step of the real scheduler with its defaults, all requests at once: tokens, rows of logits, context tokens read."""
    defaults = EngineConfig()
    limits = StepLimits(defaults.max_num_seqs, defaults.max_batched_tokens)
    costs = CostModel(StepCosts(0.0, 1.0), max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens)
    longest = max(prompt + output for prompt, output in lengths) + 1
    pool = BlockPool(limits.max_num_seqs * (longest // defaults.block_size + 1), defaults.block_size)
    scheduler = Scheduler(
        limits,
        PrefixCache(pool, mode="off"),
        make_policy("fcfs", costs),
        max_model_len=longest,
        queue=QueueLimits(len(lengths)),
    )
    for index, (prompt, output) in enumerate(lengths):
        scheduler.add(Request(index, (0,) * prompt, SamplingParams(max_tokens=output, temperature=0.0)), 0.0)
    return list(_walk(scheduler))


def _walk(scheduler: Scheduler) -> Any:
    from fastserve.core.plan import SampledToken

    while len(scheduler):
        plan = scheduler.plan(0.0)
        context = sum(chunk.start + chunk.num_tokens for chunk in plan.chunks)
        yield plan.num_tokens, len(plan.sampling), context
        with scheduler.reserve(plan) as reservation:
            reservation.commit([SampledToken(0)] * len(reservation.drawing_sequences), started=0.0, ended=0.0)


def floor(steps: list[tuple[int, int, int]], config: dict[str, Any], precision: str, threads: int) -> list[float]:
    """Seconds of all steps: linear layers, head."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    shapes = [(hidden, (heads + 2 * kv_heads) * size), (heads * size, hidden)]
    shapes += [(hidden, 2 * config["intermediate_size"]), (config["intermediate_size"], hidden)]
    linear = times(shapes * layers, precision, threads)
    head = times([(hidden, config["vocab_size"])], precision, threads)
    return [
        sum(np.interp(tokens, ROWS, linear) for tokens, _, _ in steps),
        sum(np.interp(rows, (0, *ROWS), (0.0, *head)) for _, rows, _ in steps),
    ]


def context_seconds(steps: list[tuple[int, int, int]], model: Path, bandwidth: float) -> float:
    """Of reading all steps' contexts from a KV pool of the kind that the model's config.pbtxt asks for."""
    version = model / NAME / "1"
    cache, config = ModelManifest.load(version).cache, parse_config(EngineConfig, parameters_of_version(version))
    assert cache is not None  # a decoder's
    token_bytes = bytes_per_block(cache, config.block_size, config.kv_cache_dtype) / config.block_size
    return sum(context for _, _, context in steps) * token_bytes / bandwidth


def times(shapes: list[tuple[int, int]], precision: str, threads: int) -> list[float]:
    """Seconds of one product with each of the weights, for each number of rows in :data:`ROWS`: the best product's median."""
    products = (_float_product, _prepacked_product) if precision == "fp32" else (_dynamic_product, _quantized_product)
    return [min(seconds) for seconds in zip(*(_times(shapes, product, threads) for product in products), strict=True)]


def _times(shapes: list[tuple[int, int]], product: Product, threads: int) -> list[float]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(kernels.library_path()))
    model = _products(shapes, product).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(1)
    seconds = []
    for count in ROWS:
        feeds = {f"x{width}": chance.standard_normal((count, width), np.float32) for width, _ in shapes}
        seconds.append(_median(lambda feeds=feeds: session.run(None, feeds)))  # type: ignore[misc]
    return seconds


def _float_product(number: int, weight: Array) -> tuple[NodeProto, list[TensorProto]]:
    node = helper.make_node("MatMul", [f"x{len(weight)}", f"w{number}"], [f"y{number}"])
    return node, [numpy_helper.from_array(weight, f"w{number}")]


def _dynamic_product(number: int, weight: Array) -> tuple[NodeProto, list[TensorProto]]:
    scale = np.abs(weight).max(0) / 63  # 7 bits: without VNNI more would overflow
    inputs = [f"x{len(weight)}", f"w{number}", f"s{number}"]
    node = helper.make_node("DynamicQuantizeMatMul", inputs, [f"y{number}"], domain="com.microsoft")
    whole = np.rint(weight / scale).astype(np.int8)
    return node, [numpy_helper.from_array(whole, f"w{number}"), numpy_helper.from_array(scale, f"s{number}")]


def _prepacked_product(number: int, weight: Array) -> tuple[NodeProto, list[TensorProto]]:
    width, height = weight.shape
    node = helper.make_node("PrepackedMatMul", [f"x{width}", f"w{number}"], [f"y{number}"], domain="fastserve", k=width, n=height)
    return node, [numpy_helper.from_array(prepack_weight(weight), f"w{number}")]


def _quantized_product(number: int, weight: Array) -> tuple[NodeProto, list[TensorProto]]:
    width, height = weight.shape
    inputs = [f"x{width}", f"w{number}", f"s{number}"]
    node = helper.make_node("QuantizedMatMul", inputs, [f"y{number}"], domain="fastserve", k=width, n=height)
    packed, scale = pack_weight(weight)
    return node, [numpy_helper.from_array(packed, f"w{number}"), numpy_helper.from_array(scale, f"s{number}")]


def _products(shapes: list[tuple[int, int]], product: Product) -> ModelProto:
    """One product after another; all that leaves the graph is the size of the results."""
    chance, nodes, weights = np.random.default_rng(0), [], []
    for number, shape in enumerate(shapes):
        node, constants = product(number, chance.standard_normal(shape, np.float32))
        nodes += [node, helper.make_node("Size", [f"y{number}"], [f"size{number}"])]
        weights += constants
    widths = sorted({width for width, _ in shapes})
    inputs = [helper.make_tensor_value_info(f"x{width}", TensorProto.FLOAT, ["rows", width]) for width in widths]
    outputs = [helper.make_tensor_value_info(f"size{number}", TensorProto.INT64, []) for number in range(len(shapes))]
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("fastserve", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def read_bandwidth(threads: int) -> float:
    """Bytes a second of reading memory with ``threads`` threads."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [np.ones(READ_BYTES // threads // 4, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1):  # of the library that multiplies
        return READ_BYTES / _median(lambda: list(pool.map(lambda part: np.dot(part, part), arrays)))


def _median(action: Callable[[], Any]) -> float:
    action()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
