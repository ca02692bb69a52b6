"""The int8 cache of fastserve::PagedAttention: what it holds, and that blocks of every size, cuts and mates give the same bits.

That outputs match an oracle which attends to the same rounded keys and values is in test_paged_attention.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.synthetic.paged_attention_oracle import (
    Array,
    Chunk,
    Pool,
    Shape,
    make_session,
    oracle,
    pieces,
    quantised,
    random_tokens,
    run_op,
    run_steps,
    whole,
)

LENGTHS = [3, 150, 1, 600]
SHAPE = Shape(num_heads=6, kv_num_heads=2, head_size=40, kv_dtype="int8")


def held(shape: Shape, block: Array, transposed: bool) -> tuple[Array, Array]:
    """Elements [block_size, head_size] and scales [block_size] of one block of one head."""
    elements = block[: shape.head_size * shape.block_size]
    scales = block[len(elements) :].view(np.float32)
    rows = elements.reshape(shape.head_size, shape.block_size).T if transposed else elements.reshape(-1, shape.head_size)
    return rows, scales


@pytest.mark.parametrize("block_size", [16, 32, 48])
def test_the_cache_holds_each_row_in_units_of_its_largest_element_over_127(isa: str, block_size: int) -> None:
    shape = dataclasses.replace(SHAPE, block_size=block_size)
    tokens, pool = random_tokens(shape, [45])[0], Pool(shape, [45])
    tokens.key[3] = 0
    tokens.value[4, :40] = 1e-38
    run_steps(make_session(shape), pool, [tokens], pieces([45], 11))
    for cache, rows, transposed in ((pool.key_cache, tokens.key, True), (pool.value_cache, tokens.value, False)):
        wanted, scales = quantised(rows.reshape(45, shape.kv_num_heads, shape.head_size))
        for position in range(45):
            for head in range(shape.kv_num_heads):
                got = held(shape, cache[pool.tables[0][position // block_size], head], transposed)
                assert got[0][position % block_size].tobytes() == wanted[position, head].tobytes()
                assert got[1][position % block_size] == scales[position, head, 0]
        last = held(shape, cache[pool.tables[0][-1], 0], transposed)
        assert np.isnan(last[1][45 % block_size :]).all(), "slots nobody owns are left alone"


def test_cuts_mates_blocks_and_threads_change_no_bit(isa: str) -> None:
    tokens = random_tokens(SHAPE, LENGTHS)
    expected = run_steps(make_session(SHAPE), Pool(SHAPE, LENGTHS), tokens, whole(LENGTHS))
    for size, block_size, threads in ((7, 32, 1), (64, 48, 3), (100, 256, 2)):
        shape = dataclasses.replace(SHAPE, block_size=block_size)
        rows = run_steps(make_session(shape, threads), Pool(shape, LENGTHS), tokens, pieces(LENGTHS, size))
        assert [row.tobytes() for row in rows] == [row.tobytes() for row in expected]
    for index, length in enumerate(LENGTHS):
        (alone,) = run_steps(make_session(SHAPE), Pool(SHAPE, [length], seed=5), [tokens[index]], whole([length]))
        assert alone.tobytes() == expected[index].tobytes()


def test_it_stays_near_what_a_float_cache_gives(isa: str) -> None:
    tokens = random_tokens(SHAPE, LENGTHS)
    rows = run_steps(make_session(SHAPE), Pool(SHAPE, LENGTHS), tokens, whole(LENGTHS))
    for sequence, output in zip(tokens, rows, strict=True):
        exact = oracle(dataclasses.replace(SHAPE, kv_dtype="fp32"), sequence)
        assert np.abs(output - exact).mean() < 0.02 * np.abs(exact).mean()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["key", "value"])
def test_a_key_or_value_that_is_not_finite_shows_in_whoever_sees_it(isa: str, name: str, broken: float) -> None:
    (tokens,) = random_tokens(SHAPE, [20])
    clean = run_steps(make_session(SHAPE), Pool(SHAPE, [20]), [tokens], whole([20]))[0]
    getattr(tokens, name)[11, 3] = broken  # of the first key/value head, which query heads 0 to 2 attend to
    (rows,) = run_steps(make_session(SHAPE), Pool(SHAPE, [20]), [tokens], whole([20]))
    assert np.isnan(rows[11:, : 3 * SHAPE.head_size]).all()
    assert rows[:11].tobytes() == clean[:11].tobytes()
    assert rows[:, 3 * SHAPE.head_size :].tobytes() == clean[:, 3 * SHAPE.head_size :].tobytes()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("key_cache", (6, 2, 44, 16), r"key_cache: got \[6, 2, 44, 16\], allowed: 3 dimensions"),
        ("key_cache", (6, 2, 44 * 24), r"key_cache: got \[6, 2, 1056\], allowed: a block size that is a multiple of 16"),
        ("key_cache", (6, 2, 44 * 16 + 4), r"key_cache: got \[6, 2, 708\], allowed: \[6, 2, 704\]"),
        ("value_cache", (6, 2, 40 * 16), r"value_cache: got \[6, 2, 640\], allowed: \[6, 2, 704\]"),
    ],
)
def test_a_cache_of_another_shape_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    feeds = Pool(SHAPE, [20]).feeds(random_tokens(SHAPE, [20]), [Chunk(0, 0, 20)])
    feeds |= {"key_cache": np.zeros((6, 2, 44 * 16), np.int8), "value_cache": np.zeros((6, 2, 44 * 16), np.int8)}
    with pytest.raises(Exception, match=message):
        run_op(make_session(SHAPE), feeds | {name: np.zeros(shape, np.int8)})
