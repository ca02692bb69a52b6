"""What packing saves in an encoder's attention: fastserve::PackedAttention on a packed batch beside the same batch padded to its
longest sequence, in ONNX Runtime's own MultiHeadAttention and in numpy.

Sentence lengths are those of real sentences, counted in words and punctuation marks and two special tokens (a tokenizer that
splits words makes them longer). GFLOP/s count the work that a sequence needs, whoever does it: work on padding only costs time.
The contenders take turns; medians of several runs. Prints a table and writes JSON:

    python benchmarks/bench_packed_attention.py [--sentences FILE] [--threads N] [--repeats N] [--output FILE]
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from machine_rates import Array, bound_run, make_session, matmul_rate
from onnx import TensorProto, helper
from report import SEED, circumstances, kernel_arguments, write_json
from rich.console import Console
from rich.table import Table
from sentences import load_sentences

from fastserve.worker import kernels

PACKED, PADDED, NUMPY = "packed", "MultiHeadAttention", "numpy"


@dataclasses.dataclass(frozen=True)
class Layer:
    """The attention of one layer of a known encoder."""

    name: str
    num_heads: int
    head_size: int


LAYERS = (Layer("MiniLM-L6-H384", 12, 32), Layer("BERT base", 12, 64))


def cases(sentences: Path | None) -> dict[str, list[int]]:
    """Lengths of the sequences of each batch."""
    texts = load_sentences(sentences, 64, SEED)
    lengths = [min(510, len(re.findall(r"\w+|[^\w\s]", text))) + 2 for text in texts]
    return {
        "1 sentence": lengths[:1],
        "16 sentences": lengths[:16],
        "64 sentences": lengths,
        "15 sentences, 1 page": [*lengths[:15], 512],
        "8 equal": [128] * 8,
        "1 page": [512],
    }


def padded(parts: Sequence[Array], lengths: Sequence[int]) -> list[Array]:
    """Each of ``parts`` [num_tokens, hidden] as [batch, longest, hidden]."""
    result = []
    for part in parts:
        batch = np.zeros((len(lengths), max(lengths), part.shape[1]), np.float32)
        for row, sequence in zip(batch, np.split(part, np.cumsum(lengths)[:-1]), strict=True):
            row[: len(sequence)] = sequence
        result.append(batch)
    return result


def packed_graph(layer: Layer) -> onnx.GraphProto:
    names = {"query": TensorProto.FLOAT, "cumulative_sequence_length": TensorProto.INT32}
    heads: dict[str, Any] = {"num_heads": layer.num_heads, "kv_num_heads": layer.num_heads}
    inputs = ["query", "", "", "cumulative_sequence_length"]
    return graph(helper.make_node("PackedAttention", inputs, ["output"], domain="fastserve", **heads), names)


def padded_graph(layer: Layer) -> onnx.GraphProto:
    names = dict.fromkeys(("query", "key", "value"), TensorProto.FLOAT) | {"key_padding_mask": TensorProto.INT32}
    inputs = ["query", "key", "value", "", "key_padding_mask"]
    node = helper.make_node("MultiHeadAttention", inputs, ["output"], domain="com.microsoft", num_heads=layer.num_heads)
    return graph(node, names)


def graph(node: onnx.NodeProto, types: Mapping[str, int]) -> onnx.GraphProto:
    inputs = [helper.make_tensor_value_info(name, element_type, None) for name, element_type in types.items()]
    return helper.make_graph([node], "attention", inputs, [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)])


def numpy_attention(layer: Layer, parts: Sequence[Array], lengths: Sequence[int]) -> Array:
    """Of a padded batch, [batch, longest, num_heads * head_size] each of ``parts``."""
    batch, longest, hidden = parts[0].shape
    query, key, value = (part.reshape(batch, longest, layer.num_heads, layer.head_size).swapaxes(1, 2) for part in parts)
    scores = query @ key.swapaxes(2, 3) * np.float32(layer.head_size**-0.5)
    scores += np.where(np.arange(longest) < np.array(lengths)[:, None], 0, -np.inf).astype(np.float32)[:, None, None]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.ascontiguousarray((weights @ value).swapaxes(1, 2)).reshape(batch, longest, hidden)


def contenders(layer: Layer, lengths: Sequence[int], threads: int) -> dict[str, Callable[[], object]]:
    """Each with its inputs bound, in its own layout: neither packing nor padding is timed."""
    tokens, hidden = sum(lengths), layer.num_heads * layer.head_size
    packed_qkv = np.random.default_rng(SEED).standard_normal((tokens, 3 * hidden), np.float32)
    rectangles = padded(np.split(packed_qkv, 3, axis=1), lengths)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    packed_feeds = {"query": packed_qkv, "cumulative_sequence_length": ends}
    padded_feeds = dict(zip(("query", "key", "value"), rectangles, strict=True))
    padded_feeds["key_padding_mask"] = np.array(lengths, np.int32)
    return {
        PACKED: bound_run(make_session(packed_graph(layer), threads), packed_feeds),
        PADDED: bound_run(make_session(padded_graph(layer), threads), padded_feeds),
        NUMPY: lambda: numpy_attention(layer, rectangles, lengths),
    }


def measure(layer: Layer, lengths: Sequence[int], threads: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of each contender, and GFLOP/s of the packed one."""
    runs = contenders(layer, lengths, threads)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name] += [time.perf_counter() - start] if turn else []
    seconds = {name: statistics.median(values) for name, values in times.items()}
    operations = 4 * layer.num_heads * layer.head_size * sum(length * length for length in lengths)
    return {
        "tokens": sum(lengths),
        "padded_tokens": len(lengths) * max(lengths),
        "milliseconds": {name: value * 1e3 for name, value in seconds.items()},
        "gigaflops": {name: operations / value / 1e9 for name, value in seconds.items()},
    }


def render(report: dict[str, Any]) -> Table:
    title = f"fastserve::PackedAttention, {report['isa']}, {report['threads']} threads, {report['processor']}"
    table = Table(title=title)
    for column in ("layer", "batch", "tokens", "padding", "ms", "GFLOP/s", "of MatMul", "padded ms", "gain", "numpy ms", "gain"):
        table.add_column(column, justify="left" if column in ("layer", "batch") else "right")
    for row in report["results"]:
        milliseconds, rate = row["milliseconds"], row["gigaflops"][PACKED]
        gains = {name: f"{milliseconds[name] / milliseconds[PACKED]:.1f}x" for name in (PADDED, NUMPY)}
        shares = f"{1 - row['tokens'] / row['padded_tokens']:.0%}", f"{rate / report['matmul_gigaflops']:.0%}"
        table.add_row(
            *(row["layer"], row["batch"], str(row["tokens"]), shares[0]),
            *(f"{milliseconds[PACKED]:.2f}", f"{rate:.1f}", shares[1]),
            *(f"{milliseconds[PADDED]:.2f}", gains[PADDED], f"{milliseconds[NUMPY]:.2f}", gains[NUMPY]),
        )
    return table


def main() -> None:
    parser = kernel_arguments(__doc__, "packed_attention.json", repeats=21)
    parser.add_argument("--sentences", type=Path, help="text with one sentence a line, or CoNLL; default: Python's own manual")
    arguments = parser.parse_args()
    threads, repeats = arguments.threads, arguments.repeats
    report: dict[str, Any] = {
        **circumstances(arguments),
        "isa": kernels.isa(),
        "matmul_gigaflops": matmul_rate(threads, repeats),
        "results": [
            {"layer": layer.name, "batch": batch} | measure(layer, lengths, threads, repeats)
            for layer in LAYERS
            for batch, lengths in cases(arguments.sentences).items()
        ],
    }
    console = Console()
    console.print(render(report))
    console.print(f"MatMul {report['matmul_gigaflops']:.0f} GFLOP/s; gain: against the batch padded to its longest sequence")
    write_json(report, arguments.output, console)


if __name__ == "__main__":
    main()
