"""A plain float64 PagedAttention, and a driver that runs the real op through ONNX Runtime as the runtime does.

The oracle knows nothing of blocks, tiles or packing: it attends one sequence, one query at a time. The driver keeps a KV
pool, cuts sequences into chunks, packs chunks of several sequences into runs, and binds everything by raw pointer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from tests.synthetic.one_node_session import one_node_session

Array = npt.NDArray[Any]
ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
NUMPY_TYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
CONSTANTS = ("cos_cache", "sin_cache", "q_norm_weight", "k_norm_weight")
MAX_LEN = 256
"""Positions that have angles."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """One attention layer. ``attributes``: further node attributes, as sorted pairs so that a Shape can be a cache key.

    ``packed_qkv``: query, key and value are one input; ``rotary_size``: dimensions that the op rotates, 0 for none; ``norm``:
    the op normalises queries and keys; ``without``: inputs left out all the same.
    """

    num_heads: int = 4
    kv_num_heads: int = 2
    head_size: int = 32
    block_size: int = 16
    kv_dtype: str = "fp32"
    sink: bool = False
    slot_mapping: bool = True
    packed_qkv: bool = False
    rotary_size: int = 0
    norm: bool = False
    without: tuple[str, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()

    def attribute(self, name: str, missing: float) -> float:
        return float(dict(self.attributes).get(name, missing))

    def constants(self) -> dict[str, Array]:
        """What a model would hold as weights: angles of positions and gains of the norms."""
        named: dict[str, Array] = {}
        if self.rotary_size:
            angles = np.arange(MAX_LEN)[:, None] / 10000 ** (np.arange(0, self.rotary_size, 2) / self.rotary_size)
            named |= {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}
        if self.norm:
            gains = np.random.default_rng(self.head_size).uniform(0.5, 2.0, (2, self.head_size)).astype(np.float32)
            named |= {"q_norm_weight": gains[0], "k_norm_weight": gains[1]}
        return named


def with_attributes(shape: Shape, **attributes: Any) -> Shape:
    return dataclasses.replace(shape, attributes=tuple(sorted({**dict(shape.attributes), **attributes}.items())))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """All tokens of one sequence: query [length, num_heads * head_size], key and value [length, kv_num_heads * head_size]."""

    query: Array
    key: Array
    value: Array


def random_tokens(shape: Shape, lengths: Sequence[int], seed: int = 0) -> list[Tokens]:
    random = np.random.default_rng(seed)
    query_size, key_size = shape.num_heads * shape.head_size, shape.kv_num_heads * shape.head_size

    def draw(length: int, size: int) -> Array:
        return random.standard_normal((length, size)).astype(np.float32)

    return [Tokens(draw(length, query_size) * 2, draw(length, key_size), draw(length, key_size)) for length in lengths]


def quantised(heads: Array) -> tuple[Array, Array]:
    """int8 elements of float32 rows, [..., head_size], and their scales, [..., 1]."""
    largest = np.abs(heads).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest > 1e-30, np.float32(127) / largest, np.float32(0))
    return np.rint(heads * inverse).astype(np.int8), largest / np.float32(127)


def as_stored(shape: Shape, rows: Array) -> Array:
    """What the cache gives back of keys or values, float64 [length, kv_num_heads, head_size]."""
    heads = rows.reshape(len(rows), shape.kv_num_heads, shape.head_size)
    if shape.kv_dtype == "int8":
        elements, scales = quantised(heads)
        return elements.astype(np.float64) * scales
    return heads.astype(NUMPY_TYPES[shape.kv_dtype]).astype(np.float64)


def oracle(shape: Shape, tokens: Tokens, sink: Array | None = None) -> Array:
    """Causal attention of one whole sequence in float64: [length, num_heads * head_size]."""
    length, group = len(tokens.query), shape.num_heads // shape.kv_num_heads
    query = tokens.query.astype(np.float64).reshape(length, shape.num_heads, shape.head_size)
    key, value = as_stored(shape, tokens.key), as_stored(shape, tokens.value)
    scale = shape.attribute("scale", 0.0) or shape.head_size**-0.5
    softcap, window = shape.attribute("softcap", 0.0), int(shape.attribute("local_window_size", -1))
    output = np.empty_like(query)
    for position in range(length):
        first = max(0, position - window + 1) if window > 0 else 0
        for head in range(shape.num_heads):
            seen = slice(first, position + 1)
            scores = key[seen, head // group] @ query[position, head] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            logits = scores if sink is None else np.append(scores, sink[head])
            weights = np.exp(scores - logits.max())
            output[position, head] = weights @ value[seen, head // group] / np.exp(logits - logits.max()).sum()
    return output.reshape(length, -1)


def make_session(shape: Shape, threads: int = 2, value_dtype: str | None = None) -> ort.InferenceSession:
    """A session of one PagedAttention node.

    ``value_dtype``: element type of the value cache when it is not that of the key cache.
    """
    integers, cache, value_cache = TensorProto.INT32, ELEMENT_TYPES[shape.kv_dtype], ELEMENT_TYPES[value_dtype or shape.kv_dtype]
    types = dict.fromkeys(("query", "key", "value"), TensorProto.FLOAT) | {"key_cache": cache, "value_cache": value_cache}
    types |= dict.fromkeys(("cumulative_sequence_length", "past_seqlens", "block_table"), integers)
    absent = {name for name in ("key", "value") if shape.packed_qkv} | set(shape.without)
    absent |= {name for name, present in (("slot_mapping", shape.slot_mapping), ("head_sink", shape.sink)) if not present}
    absent |= set(CONSTANTS) - set(shape.constants())
    types |= {"slot_mapping": integers} | dict.fromkeys(("head_sink", *CONSTANTS), TensorProto.FLOAT)
    names = [*list(types)[:8], *CONSTANTS[:2], "slot_mapping", "head_sink", *CONSTANTS[2:]]
    names = ["" if name in absent else name for name in names]
    attributes: dict[str, Any] = {"num_heads": shape.num_heads, "kv_num_heads": shape.kv_num_heads}
    attributes |= {"do_rotary": int(shape.rotary_size > 0), **dict(shape.attributes)}
    return one_node_session("PagedAttention", names, types, attributes, threads)


def run_op(session: ort.InferenceSession, feeds: dict[str, Array], out_shape: tuple[int, int] | None = None) -> Array:
    """One run with every tensor bound by pointer; arrays are read (and the caches written) in place."""
    binding = session.io_binding()
    for name, array in feeds.items():
        assert array.flags.c_contiguous
        binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    output = np.full(out_shape or feeds["query"].shape, np.nan, np.float32)
    binding.bind_output("output", "cpu", 0, np.float32, list(output.shape), output.ctypes.data)
    session.run_with_iobinding(binding)
    return output


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + count) of sequence ``sequence``."""

    sequence: int
    start: int
    count: int


class Pool:
    """KV blocks of one layer, poisoned with NaN until written, and block tables scattered over them."""

    def __init__(self, shape: Shape, lengths: Sequence[int], seed: int = 0, spare_blocks: int = 3) -> None:
        needed = [-(-length // shape.block_size) for length in lengths]
        ids = np.random.default_rng(seed).permutation(sum(needed) + spare_blocks).astype(np.int32)
        self.shape, self.lengths = shape, list(lengths)
        heads = (len(ids), shape.kv_num_heads)
        if shape.kv_dtype == "int8":  # four bytes of -1 are a NaN, as a scale
            self.key_cache = np.full((*heads, (shape.head_size + 4) * shape.block_size), -1, np.int8)
            self.value_cache = self.key_cache.copy()
        else:
            stored = NUMPY_TYPES[shape.kv_dtype]
            self.key_cache = np.full((*heads, shape.head_size, shape.block_size), np.nan, stored)
            self.value_cache = np.full((*heads, shape.block_size, shape.head_size), np.nan, stored)
        self.tables: list[Array] = []
        for count in needed:
            self.tables.append(ids[:count])
            ids = ids[count:]

    def slots(self, chunk: Chunk) -> Array:
        blocks, offsets = np.divmod(np.arange(chunk.start, chunk.start + chunk.count), self.shape.block_size)
        return np.asarray(self.tables[chunk.sequence][blocks] * self.shape.block_size + offsets, np.int32)

    def feeds(self, tokens: Sequence[Tokens], chunks: Sequence[Chunk], sink: Array | None = None) -> dict[str, Array]:
        """The op's inputs for one packed run of ``chunks``."""
        table = np.full((len(chunks), max(len(self.tables[c.sequence]) for c in chunks)), -1, np.int32)
        for row, chunk in enumerate(chunks):
            table[row, : len(self.tables[chunk.sequence])] = self.tables[chunk.sequence]
        packed = {
            name: np.concatenate([getattr(tokens[c.sequence], name)[c.start : c.start + c.count] for c in chunks])
            for name in ("query", "key", "value")
        }
        if self.shape.packed_qkv:
            packed = {"query": np.concatenate(list(packed.values()), axis=1)}
        feeds: dict[str, Array] = packed | self.shape.constants()
        feeds |= {"key_cache": self.key_cache, "value_cache": self.value_cache}
        feeds["cumulative_sequence_length"] = np.cumsum([0] + [c.count for c in chunks], dtype=np.int32)
        feeds["past_seqlens"] = np.array([c.start for c in chunks], np.int32)
        feeds["block_table"] = table
        if self.shape.slot_mapping:
            feeds["slot_mapping"] = np.concatenate([self.slots(c) for c in chunks])
        if sink is not None:
            feeds["head_sink"] = sink
        return {name: array for name, array in feeds.items() if name not in self.shape.without}


def run_steps(
    session: ort.InferenceSession,
    pool: Pool,
    tokens: Sequence[Tokens],
    steps: Sequence[Sequence[Chunk]],
    sink: Array | None = None,
) -> list[Array]:
    """Run packed steps one after another; returns each sequence's output rows in order of position."""
    rows = [np.full_like(t.query, np.nan) for t in tokens]
    for chunks in steps:
        output = run_op(session, pool.feeds(tokens, chunks, sink), (sum(c.count for c in chunks), rows[0].shape[1]))
        start = 0
        for chunk in chunks:
            rows[chunk.sequence][chunk.start : chunk.start + chunk.count] = output[start : start + chunk.count]
            start += chunk.count
    return rows


def whole(lengths: Sequence[int]) -> list[list[Chunk]]:
    """One step that prefills every sequence at once."""
    return [[Chunk(index, 0, length) for index, length in enumerate(lengths)]]


def pieces(lengths: Sequence[int], size: int) -> list[list[Chunk]]:
    """Steps that feed every unfinished sequence ``size`` tokens at a time."""
    starts = range(0, max(lengths), size)
    return [[Chunk(i, s, min(size, length - s)) for i, length in enumerate(lengths) if s < length] for s in starts]
