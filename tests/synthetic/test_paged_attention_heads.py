"""What fastserve::PagedAttention does to heads before they attend: packed QKV, normalisation, rotation.

Each feature against plain arithmetic outside the op: the same bits for layout and rotation, whose operations are few enough
to be the same ones; a float64 mean for the normalisation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.synthetic.paged_attention_oracle import (
    MAX_LEN,
    Array,
    Chunk,
    Pool,
    Shape,
    Tokens,
    make_session,
    oracle,
    pieces,
    random_tokens,
    run_op,
    run_steps,
    whole,
    with_attributes,
)

LENGTHS = [3, 150, 1, 64]
EVERYTHING = Shape(num_heads=6, kv_num_heads=2, head_size=64, packed_qkv=True, rotary_size=48, norm=True)


def changed(shape: Shape, tokens: Tokens) -> Tokens:
    """The tokens with heads normalised and rotated as the shape says, in float32 (the mean of squares in float64)."""
    constants, interleaved = shape.constants(), bool(shape.attribute("rotary_interleaved", 0))

    def change(rows: Array, gain: str) -> Array:
        heads = rows.reshape(len(rows), -1, shape.head_size).copy()
        if shape.norm:
            mean = np.mean(heads.astype(np.float64) ** 2, axis=-1, keepdims=True)
            heads = (heads / np.sqrt(mean + shape.attribute("qk_norm_epsilon", 1e-6)) * constants[gain]).astype(np.float32)
        if shape.rotary_size:
            pairs = shape.rotary_size // 2
            first = slice(0, shape.rotary_size, 2) if interleaved else slice(0, pairs)
            second = slice(1, shape.rotary_size, 2) if interleaved else slice(pairs, shape.rotary_size)
            cos, sin = (constants[name][: len(rows), None] for name in ("cos_cache", "sin_cache"))  # [length, 1, pairs]
            a, b = heads[..., first].copy(), heads[..., second].copy()
            heads[..., first], heads[..., second] = a * cos - b * sin, b * cos + a * sin
        return heads.reshape(rows.shape)

    return Tokens(change(tokens.query, "q_norm_weight"), change(tokens.key, "k_norm_weight"), tokens.value)


def plain(shape: Shape) -> Shape:
    return dataclasses.replace(shape, packed_qkv=False, rotary_size=0, norm=False, attributes=())


def assert_same_run(shape: Shape, other: Shape, tokens: list[Tokens], other_tokens: list[Tokens]) -> None:
    """Outputs and caches of both are the same bits."""
    pool, other_pool = Pool(shape, LENGTHS), Pool(other, LENGTHS)
    rows = run_steps(make_session(shape), pool, tokens, pieces(LENGTHS, 40))
    other_rows = run_steps(make_session(other), other_pool, other_tokens, pieces(LENGTHS, 40))
    for one, another in zip(rows, other_rows, strict=True):
        assert one.tobytes() == another.tobytes()
    assert pool.key_cache.tobytes() == other_pool.key_cache.tobytes()
    assert pool.value_cache.tobytes() == other_pool.value_cache.tobytes()


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("num_heads", "kv_num_heads", "head_size"), [(6, 2, 64), (3, 3, 40), (14, 2, 128)])
def test_query_key_and_value_in_one_input_give_the_same_bits(
    isa: str, num_heads: int, kv_num_heads: int, head_size: int, kv_dtype: str
) -> None:
    shape = Shape(num_heads=num_heads, kv_num_heads=kv_num_heads, head_size=head_size, kv_dtype=kv_dtype)
    tokens = random_tokens(shape, LENGTHS)
    assert_same_run(dataclasses.replace(shape, packed_qkv=True), shape, tokens, tokens)


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("head_size", "rotary_size"), [(8, 8), (64, 64), (64, 16), (80, 32), (80, 80), (96, 74), (128, 128), (8, 2)]
)
def test_rotation_in_the_op_gives_the_bits_of_rotation_before_it(
    isa: str, head_size: int, rotary_size: int, interleaved: int, kv_dtype: str
) -> None:
    shape = Shape(head_size=head_size, rotary_size=rotary_size, kv_dtype=kv_dtype)
    shape = with_attributes(shape, rotary_interleaved=interleaved)
    tokens = random_tokens(shape, LENGTHS)
    assert_same_run(shape, plain(shape), tokens, [changed(shape, sequence) for sequence in tokens])


@pytest.mark.parametrize("attributes", [{}, {"qk_norm_epsilon": 0.5}], ids=str)
@pytest.mark.parametrize(("head_size", "rotary_size"), [(8, 0), (64, 0), (128, 128), (40, 16)])
def test_normalised_heads_match_the_oracle(isa: str, head_size: int, rotary_size: int, attributes: dict[str, Any]) -> None:
    shape = with_attributes(Shape(head_size=head_size, rotary_size=rotary_size, norm=True), **attributes)
    tokens = random_tokens(shape, LENGTHS)
    rows = run_steps(make_session(shape), Pool(shape, LENGTHS), tokens, pieces(LENGTHS, 40))
    for sequence, output in zip(tokens, rows, strict=True):
        np.testing.assert_allclose(output, oracle(plain(shape), changed(shape, sequence)), rtol=2e-5, atol=1e-5)


def test_with_everything_the_output_does_not_depend_on_cuts_mates_or_threads(isa: str) -> None:
    tokens = random_tokens(EVERYTHING, LENGTHS)
    expected = run_steps(make_session(EVERYTHING, 1), Pool(EVERYTHING, LENGTHS), tokens, whole(LENGTHS))
    session = make_session(EVERYTHING)
    for size in (1, 7, 64):
        rows = run_steps(session, Pool(EVERYTHING, LENGTHS, seed=size), tokens, pieces(LENGTHS, size))
        assert [row.tobytes() for row in rows] == [row.tobytes() for row in expected]
    for index, length in enumerate(LENGTHS):
        (alone,) = run_steps(session, Pool(EVERYTHING, [length]), [tokens[index]], whole([length]))
        assert alone.tobytes() == expected[index].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.zeros((20, 600), np.float32)}, r"query: got \[20, 600\], allowed: num_heads \+ 2 \* kv_num_heads \(10\)"),
        ({"cos_cache": np.zeros((19, 24), np.float32)}, r"sin_cache: got \[256, 24\], allowed: \[19, 24\]"),
        ({"cos_cache": np.zeros((256, 33), np.float32)}, r"cos_cache: got \[256, 33\], .* 1 to 32 columns"),
        ({"cos_cache": np.zeros((256, 0), np.float32)}, r"cos_cache: got \[256, 0\]"),
        ({"cos_cache": np.zeros(24, np.float32)}, r"cos_cache: got \[24\], allowed: 2 dimensions"),
        ({"q_norm_weight": np.zeros(32, np.float32)}, r"q_norm_weight: got \[32\], allowed: \[64\]"),
        ({"k_norm_weight": np.zeros((1, 64), np.float32)}, r"k_norm_weight: got \[1, 64\], allowed: \[64\]"),
    ],
    ids=str,
)
def test_a_bad_tensor_is_refused_before_anything_is_written(change: dict[str, Array], message: str) -> None:
    pool = Pool(EVERYTHING, [20])
    feeds = pool.feeds(random_tokens(EVERYTHING, [20]), [Chunk(0, 0, 20)]) | change
    with pytest.raises(Exception, match=r"fastserve::PagedAttention: " + message):
        run_op(make_session(EVERYTHING), feeds, (20, 384))
    assert np.isnan(pool.key_cache).all()


def test_a_position_without_angles_is_refused() -> None:
    shape = Shape(rotary_size=32)
    tokens, pool = random_tokens(shape, [20, MAX_LEN + 1]), Pool(shape, [20, MAX_LEN + 1])
    run_steps(make_session(shape), pool, tokens, [[Chunk(0, 0, 20), Chunk(1, 0, MAX_LEN)]])
    with pytest.raises(Exception, match=r"cos_cache: got \[256, 16\], allowed: at least 257 rows, for the tokens of sequence 1"):
        run_op(make_session(shape), pool.feeds(tokens, [Chunk(0, 20, 0), Chunk(1, MAX_LEN, 1)]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("key", "key: got nothing, allowed: key and value, or neither of them and a query that holds all three"),
        ("value", "value: got nothing, allowed: key and value, or neither"),
        ("cos_cache", "cos_cache: got nothing, allowed: cos_cache and sin_cache, or neither of them"),
        ("sin_cache", "sin_cache: got nothing, allowed: cos_cache and sin_cache, or neither of them"),
        ("q_norm_weight", "q_norm_weight: got nothing, allowed: q_norm_weight and k_norm_weight, or neither of them"),
        ("k_norm_weight", "k_norm_weight: got nothing, allowed: q_norm_weight and k_norm_weight, or neither of them"),
    ],
)
def test_what_comes_in_pairs_is_given_in_pairs(name: str, message: str) -> None:
    shape = Shape(rotary_size=32, norm=True, without=(name,))
    with pytest.raises(Exception, match=message):
        run_op(make_session(shape), Pool(shape, [5]).feeds(random_tokens(shape, [5]), [Chunk(0, 0, 5)]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (with_attributes(Shape(rotary_size=32), do_rotary=0), r"cos_cache: got \[256, 16\], allowed: nothing \(do_rotary is 0\)"),
        (with_attributes(Shape(), do_rotary=1), r"cos_cache: got nothing, allowed: cos_cache and sin_cache \(do_rotary is 1\)"),
    ],
    ids=["angles without rotation", "rotation without angles"],
)
def test_angles_are_given_where_heads_are_rotated_and_only_there(shape: Shape, message: str) -> None:
    with pytest.raises(Exception, match=message):
        run_op(make_session(shape), Pool(shape, [5]).feeds(random_tokens(shape, [5]), [Chunk(0, 0, 5)]))
