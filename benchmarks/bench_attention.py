"""How near the attention kernel comes to what the machine can do.

Decode mostly waits for the cache to be read, prefill for arithmetic. So every case is held against a roofline (Williams et
al., 2009): the time that reading its bytes takes at the machine's measured read bandwidth, or that its multiply-adds take at
the rate of ONNX Runtime's own MatMul, whichever is longer. The machine is measured anew beside every run of a case, and shares
are of pairs, so that a machine that slows down for a while changes them little. Medians, of layers of several families,
contexts and batches. FASTSERVE_ISA=avx2 measures that variant. Prints tables and writes JSON:

    python benchmarks/bench_attention.py [--threads N] [--repeats N] [--kv-dtype fp32 ...] [--output FILE]
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from machine_rates import MATMUL_OPERATIONS, READ_BYTES, Array, Reading, bound_run, make_session, matmul_run, seconds_of
from onnx import TensorProto, helper
from report import SEED, circumstances, kernel_arguments, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastserve.worker import kernels
from fastserve.worker.device import pool_array
from fastserve.worker.kv_cache import SCALE_BYTES

BLOCK_SIZE = 16
CHUNK = 512
"""Tokens of a prefill."""
LARGEST_POOL = 1 << 30
"""Bytes; cases that need more are left out."""
STORED: dict[str, tuple[int, type[np.generic]]] = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
    "int8": (TensorProto.INT8, np.int8),
}
CONTEXTS = (128, 512, 2048, 8192)
BATCHES = (1, 4, 16, 64)


@dataclasses.dataclass(frozen=True)
class Layer:
    """The attention of one layer: SmolLM2's (9/3), Qwen2.5-0.5B's (14/2) and GPT-2's (12/12) heads, in two sizes."""

    num_heads: int
    kv_num_heads: int
    head_size: int

    def __str__(self) -> str:
        return f"{self.num_heads}/{self.kv_num_heads} of {self.head_size}"


LAYERS = tuple(Layer(heads, kv_heads, size) for size in (64, 128) for heads, kv_heads in ((9, 3), (14, 2), (12, 12)))


@dataclasses.dataclass(frozen=True)
class Case:
    """``num_seqs`` sequences of ``context`` tokens, of which the last ``new`` run and the others are in the cache."""

    layer: Layer
    kv_dtype: str
    num_seqs: int
    context: int
    new: int

    @property
    def bytes_read(self) -> int:
        """Of the cache, once a sequence and key/value head."""
        return self.num_seqs * self.context * self.layer.kv_num_heads * 2 * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Of one head of one token, with its scale."""
        scale = SCALE_BYTES if self.kv_dtype == "int8" else 0
        return self.layer.head_size * int(np.dtype(STORED[self.kv_dtype][1]).itemsize) + scale

    @property
    def operations(self) -> int:
        """Two for each multiply-add of a query and a position that it sees: scores, then values."""
        pairs = self.num_seqs * (self.new * (self.context - self.new) + self.new * (self.new + 1) // 2)
        return 4 * pairs * self.layer.num_heads * self.layer.head_size


def cases(kv_dtypes: list[str]) -> Iterator[Case]:
    for layer in LAYERS:
        for kv_dtype in kv_dtypes:
            decodes = [Case(layer, kv_dtype, batch, context, 1) for context in CONTEXTS for batch in BATCHES]
            prefills = [Case(layer, kv_dtype, 1, context, min(CHUNK, context)) for context in CONTEXTS]
            yield from (case for case in decodes + prefills if case.bytes_read <= LARGEST_POOL)


class Pools:
    """Keys and values for every case, in the same memory again and again: random numbers, repeated."""

    def __init__(self, kv_dtypes: list[str]) -> None:
        self._drawn = np.random.default_rng(SEED).standard_normal(1 << 20, np.float32)
        self._memory: dict[str, tuple[Array, Array]] = {}
        for kv_dtype in kv_dtypes:
            dtype = STORED[kv_dtype][1]
            count = LARGEST_POOL // 2 // np.dtype(dtype).itemsize
            self._memory[kv_dtype] = (pool_array((count,), dtype), pool_array((count,), dtype))
        self._filled = dict.fromkeys(kv_dtypes, 0)

    def caches(self, case: Case, num_blocks: int) -> tuple[Array, Array]:
        """As KVCache lays them out."""
        layer = case.layer
        keys, values = self._memory[case.kv_dtype]
        needed = num_blocks * layer.kv_num_heads * BLOCK_SIZE * case.row_bytes // keys.itemsize
        drawn = self._drawn.view(np.int8) if case.kv_dtype == "int8" else self._drawn
        for start in range(self._filled[case.kv_dtype], needed, len(drawn)):
            stop = min(start + len(drawn), len(keys))
            keys[start:stop] = values[start:stop] = drawn[: stop - start]
            self._filled[case.kv_dtype] = stop
        keys, values = (array[:needed].reshape(num_blocks, layer.kv_num_heads, -1) for array in (keys, values))
        if case.kv_dtype == "int8":
            return keys, values
        shape = keys.shape[:2]
        return keys.reshape(*shape, layer.head_size, BLOCK_SIZE), values.reshape(*shape, BLOCK_SIZE, layer.head_size)


def attention_feeds(case: Case, pools: Pools) -> dict[str, Array]:
    """Random tokens, and sequences whose blocks are scattered over a pool that just holds them."""
    random = np.random.default_rng(SEED)
    blocks = -(-case.context // BLOCK_SIZE)
    table = random.permutation(case.num_seqs * blocks).astype(np.int32).reshape(case.num_seqs, blocks)
    positions = np.arange(case.context - case.new, case.context)
    slots = table[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    keys, values = pools.caches(case, table.size)
    heads = case.layer.num_heads + 2 * case.layer.kv_num_heads
    return {
        "query": random.standard_normal((case.num_seqs * case.new, heads * case.layer.head_size), np.float32),
        "key_cache": keys,
        "value_cache": values,
        "cumulative_sequence_length": np.arange(case.num_seqs + 1, dtype=np.int32) * case.new,
        "past_seqlens": np.full(case.num_seqs, case.context - case.new, np.int32),
        "block_table": table,
        "slot_mapping": slots.astype(np.int32).ravel(),
    }


def attention_graph(case: Case) -> onnx.GraphProto:
    names = ["key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens", "block_table"]
    types = {"query": TensorProto.FLOAT} | dict.fromkeys(names[:2], STORED[case.kv_dtype][0])
    types |= dict.fromkeys([*names[2:], "slot_mapping"], TensorProto.INT32)
    attributes: dict[str, Any] = {"num_heads": case.layer.num_heads, "kv_num_heads": case.layer.kv_num_heads}
    operands = ["query", "", "", *names, "", "", "slot_mapping"]
    node = helper.make_node("PagedAttention", operands, ["output"], domain="fastserve", **attributes)
    inputs = [helper.make_tensor_value_info(name, element_type, None) for name, element_type in types.items()]
    return helper.make_graph([node], "attention", inputs, [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)])


class Machine:
    """What the machine does at best, measured again and again."""

    def __init__(self, threads: int) -> None:
        self.reading, self.matmul = Reading(threads), matmul_run(threads)
        self.read_rates: list[float] = []  # bytes a second
        self.matmul_rates: list[float] = []  # operations a second

    def measure(self) -> None:
        self.read_rates.append(READ_BYTES / seconds_of(self.reading))
        self.matmul_rates.append(MATMUL_OPERATIONS / seconds_of(self.matmul))


def measure(case: Case, pools: Pools, machine: Machine, arguments: Any) -> dict[str, Any]:
    """Median time, bytes read and operations a second, and shares of what the machine does at the same time."""
    run = bound_run(make_session(attention_graph(case), arguments.threads), attention_feeds(case, pools))
    run()
    times: list[float] = []
    shares: dict[str, list[float]] = {"of_reading": [], "of_matmul": [], "of_roofline": []}
    for _ in range(arguments.repeats):
        machine.measure()
        run()  # what was measured last has filled the processor's caches
        times.append(seconds_of(run))
        shares["of_reading"].append(case.bytes_read / machine.read_rates[-1] / times[-1])
        shares["of_matmul"].append(case.operations / machine.matmul_rates[-1] / times[-1])
        shares["of_roofline"].append(max(shares["of_reading"][-1], shares["of_matmul"][-1]))
    seconds = statistics.median(times)
    return {
        **dataclasses.asdict(case),
        "layer": str(case.layer),
        "milliseconds": seconds * 1e3,
        "gigabytes_per_second": case.bytes_read / seconds / 1e9,
        "gigaflops": case.operations / seconds / 1e9,
        **{name: statistics.median(values) for name, values in shares.items()},
    }


def render(report: dict[str, Any], kind: str) -> Table:
    """One row a layer, cache and context; columns are batches of a decode, or figures of a prefill. Above 100 % of reading:
    part of the pool stayed in the processor's caches."""
    decode = kind == "decode"
    table = Table(title=f"fastserve::PagedAttention, {kind}, {report['isa']}, {report['threads']} threads, {report['processor']}")
    for column in ("heads", "cache", "context", *(map(str, BATCHES) if decode else ("ms", "GFLOP/s", "of MatMul"))):
        table.add_column(column, justify="right")
    rows: dict[tuple[Any, ...], list[str]] = {}
    for row in report["results"]:
        if (row["new"] == 1) != decode:
            continue
        cells = rows.setdefault((row["layer"], row["kv_dtype"], str(row["context"])), [])
        if decode:
            cells.append(f"{row['gigabytes_per_second']:.0f} {row['of_reading']:.0%}/{row['of_roofline']:.0%}")
        else:
            cells += [f"{row['milliseconds']:.2f}", f"{row['gigaflops']:.0f}", f"{row['of_matmul']:.0%}"]
    for key, cells in rows.items():
        table.add_row(*key, *cells)
    table.caption = "by batch: GB/s, share of reading / of the roofline" if decode else f"{CHUNK} new tokens, or the context"
    return table


def main() -> None:
    parser = kernel_arguments(__doc__, "attention.json", repeats=15)
    parser.add_argument("--kv-dtype", nargs="+", default=list(STORED), choices=STORED)
    arguments = parser.parse_args()
    report: dict[str, Any] = {**circumstances(arguments), "isa": kernels.isa()}
    machine, pools, console = Machine(arguments.threads), Pools(arguments.kv_dtype), Console(width=120)
    planned = list(cases(arguments.kv_dtype))
    report["results"] = [measure(case, pools, machine, arguments) for case in track(planned, console=console)]
    report["read_gigabytes_per_second"] = statistics.median(machine.read_rates) / 1e9
    report["matmul_gigaflops"] = statistics.median(machine.matmul_rates) / 1e9
    for kind in ("decode", "prefill"):
        console.print(render(report, kind))
    console.print(f"reading {report['read_gigabytes_per_second']:.1f} GB/s, MatMul {report['matmul_gigaflops']:.0f} GFLOP/s")
    write_json(report, arguments.output, console)


if __name__ == "__main__":
    main()
