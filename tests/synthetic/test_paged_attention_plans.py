"""Calls of a thread that ask the same share a plan of their work; whatever else they differ in, no call gets another's."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest

from tests.synthetic.concurrent_runs import run_at_once
from tests.synthetic.paged_attention_oracle import (
    Array,
    Chunk,
    Pool,
    Shape,
    Tokens,
    make_session,
    random_tokens,
    run_op,
    run_steps,
    whole,
    with_attributes,
)

LENGTHS = [1300, 700]
SHAPE = Shape(num_heads=6, kv_num_heads=2)
# Alike but in one thing that a plan depends on.
RELATED = [
    SHAPE,
    with_attributes(SHAPE, local_window_size=70),
    with_attributes(SHAPE, local_window_size=600),
    dataclasses.replace(SHAPE, head_size=64),
    dataclasses.replace(SHAPE, num_heads=2),
    dataclasses.replace(SHAPE, kv_num_heads=6),
]


class FilledLayer:
    """A layer whose cache holds all tokens; runs of the same shapes read the same buffers, with other contents."""

    def __init__(self, shape: Shape, lengths: list[int]) -> None:
        self._tokens: list[Tokens] = random_tokens(shape, lengths)
        self._pool = Pool(shape, lengths)
        self._session: ort.InferenceSession = make_session(shape)
        self._rows = run_steps(self._session, self._pool, self._tokens, whole(lengths))
        self._buffers: dict[tuple[str, tuple[int, ...]], Array] = {}

    def run(self, chunks: list[Chunk]) -> bytes:
        feeds = {}
        for name, array in self._pool.feeds(self._tokens, chunks).items():
            feeds[name] = self._buffers.setdefault((name, array.shape), array)
            np.copyto(feeds[name], array)
        return bytes(run_op(self._session, feeds).data)

    def expected(self, chunks: list[Chunk]) -> bytes:
        """The same tokens' rows, computed with all others at once."""
        return bytes(np.concatenate([self._rows[c.sequence][c.start : c.start + c.count] for c in chunks]).data)


@pytest.mark.parametrize(
    "steps",
    [
        [[Chunk(0, 700, 1), Chunk(1, 40, 1)], [Chunk(0, 40, 1), Chunk(1, 699, 1)]],
        [[Chunk(0, 700, 1), Chunk(1, 40, 3)], [Chunk(0, 700, 3), Chunk(1, 40, 1)]],
        [[Chunk(0, 1299, 1)], [Chunk(0, 511, 1)], [Chunk(0, 512, 1)]],
    ],
    ids=["other contexts", "other chunks", "one sequence, from three spans to one to two"],
)
def test_a_run_whose_buffers_hold_other_numbers_than_before_is_planned_anew(isa: str, steps: list[list[Chunk]]) -> None:
    layer = FilledLayer(SHAPE, LENGTHS)
    for chunks in [*steps, *reversed(steps)]:
        assert layer.run(chunks) == layer.expected(chunks)


def test_a_run_that_asks_the_same_again_gives_the_same_bits_also_where_spans_are_shared_out(isa: str) -> None:
    layer, chunks = FilledLayer(SHAPE, LENGTHS), [Chunk(0, 1299, 1)]
    for _ in range(4):
        assert layer.run(chunks) == layer.expected(chunks)


def test_layers_of_other_windows_heads_and_head_sizes_take_turns_in_a_thread(isa: str) -> None:
    layers, chunks = [FilledLayer(shape, LENGTHS) for shape in RELATED], [Chunk(0, 1299, 1), Chunk(1, 600, 1)]
    for first in layers:
        for second in layers:
            for layer in (first, second):
                assert layer.run(chunks) == layer.expected(chunks)


def test_layers_side_by_side_in_threads_each_follow_their_own_plan(isa: str) -> None:
    layers = [FilledLayer(shape, LENGTHS) for shape in (SHAPE, SHAPE, RELATED[2])]
    steps = [[Chunk(0, 1299, 1)], [Chunk(0, 1299, 1)], [Chunk(0, 600, 1)], [Chunk(1, 30, 20)]]
    outputs = run_at_once(lambda layer: [layer.run(chunks) for chunks in steps for _ in range(3)], layers, 10)
    for layer, times in zip(layers, outputs, strict=True):
        assert times == [[layer.expected(chunks) for chunks in steps for _ in range(3)]] * 10
