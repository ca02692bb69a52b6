"""What fastserve::PagedAttention refuses, and that its message names the input or attribute, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.synthetic.paged_attention_oracle import Array, Chunk, Pool, Shape, make_session, random_tokens, run_op, with_attributes


def _bad_entry(name: str, index: tuple[int, ...], value: int) -> Callable[[dict[str, Array]], None]:
    def change(feeds: dict[str, Array]) -> None:
        feeds[name][index] = value

    return change


def _bad_array(**arrays: Array) -> Callable[[dict[str, Array]], None]:
    return lambda feeds: feeds.update(arrays)


def _zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


# Of a run with 2 sequences, of 20 and 5 tokens, 8 query heads and 2 key/value heads of 32, blocks of 16 tokens in a pool of 6.
BAD_INPUTS = [
    (_bad_entry("block_table", (0, 1), 6), r"block_table\[0\]\[1\]: got 6, allowed: 0 to 5"),
    (_bad_entry("block_table", (1, 0), -1), r"block_table\[1\]\[0\]: got -1, allowed: 0 to 5"),
    (_bad_array(block_table=_zeros(2, 1, dtype=np.int32)), r"block_table: got 1 blocks a sequence, allowed: at least 2, for"),
    (_bad_array(block_table=_zeros(3, 2, dtype=np.int32)), r"block_table: got \[3, 2\], allowed: \[2, 2\]"),
    (_bad_array(block_table=_zeros(2, dtype=np.int32)), r"block_table: got \[2\], allowed: 2 dimensions"),
    (_bad_entry("slot_mapping", (3,), 96), r"slot_mapping\[3\]: got 96, allowed: -1 \(do not write\) or a slot from 0 to 95"),
    (_bad_entry("slot_mapping", (3,), -2), r"slot_mapping\[3\]: got -2"),
    (_bad_array(slot_mapping=_zeros(24, dtype=np.int32)), r"slot_mapping: got \[24\], allowed: \[25\]"),
    (_bad_entry("cumulative_sequence_length", (1,), 26), r"cumulative_sequence_length\[2\]: got 25, allowed: at least 26"),
    (_bad_entry("cumulative_sequence_length", (0,), 1), r"cumulative_sequence_length\[0\]: got 1, allowed: 0"),
    (_bad_entry("cumulative_sequence_length", (2,), 24), r"cumulative_sequence_length's last entry: got 24, allowed: 25"),
    (_bad_array(cumulative_sequence_length=_zeros(0, dtype=np.int32)), r"cumulative_sequence_length: got \[0\]"),
    (_bad_entry("past_seqlens", (1,), -1), r"past_seqlens\[1\]: got -1, allowed: 0 or more"),
    (_bad_entry("past_seqlens", (1,), 2**31 - 1), r"block_table: got 2 blocks a sequence, allowed: at least 134217729"),
    (_bad_array(past_seqlens=_zeros(3, dtype=np.int32)), r"past_seqlens: got \[3\], allowed: \[2\]"),
    (_bad_array(query=_zeros(25, 250)), r"query: got \[25, 250\], allowed: num_heads \(8\) heads of a size"),
    (_bad_array(query=_zeros(25, 8 * 264)), r"query: got \[25, 2112\]"),
    (_bad_array(query=_zeros(256)), r"query: got \[256\], allowed: 2 dimensions"),
    (_bad_array(key=_zeros(25, 32)), r"key: got \[25, 32\], allowed: \[25, 64\]"),
    (_bad_array(value=_zeros(24, 64)), r"value: got \[24, 64\], allowed: \[25, 64\]"),
    (_bad_array(key_cache=_zeros(6, 2, 32, 8)), r"key_cache: got \[6, 2, 32, 8\], allowed: a block size that is a mult"),
    (_bad_array(key_cache=_zeros(6, 3, 32, 16)), r"key_cache: got \[6, 3, 32, 16\], allowed: \[6, 2, 32, 16\]"),
    (_bad_array(value_cache=_zeros(5, 2, 16, 32)), r"value_cache: got \[5, 2, 16, 32\], allowed: \[6, 2, 16, 32\]"),
    (_bad_array(head_sink=_zeros(2)), r"head_sink: got \[2\], allowed: \[8\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS, ids=[message for _, message in BAD_INPUTS])
def test_a_bad_input_is_refused_before_anything_is_written(change: Callable[[dict[str, Array]], None], message: str) -> None:
    shape = Shape(num_heads=8, kv_num_heads=2, sink=True)
    pool = Pool(shape, [20, 5])
    feeds = pool.feeds(random_tokens(shape, [20, 5]), [Chunk(0, 0, 20), Chunk(1, 0, 5)], _zeros(8))
    change(feeds)
    with pytest.raises(Exception, match=r"fastserve::PagedAttention: " + message):
        run_op(make_session(shape), feeds, (25, 256))
    assert np.isnan(pool.key_cache).all() and np.isnan(pool.value_cache).all()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"kv_num_heads": 3}, r"kv_num_heads: got 3, allowed: a divisor of num_heads \(4\)"),
        ({"scale": -1.0}, "scale: got -1"),
        ({"softcap": float("nan")}, "softcap: got -?nan"),
        ({"local_window_size": 0}, "local_window_size: got 0, allowed: -1 .off. or 1"),
        ({"do_rotary": 2}, "do_rotary: got 2, allowed: 0 or 1"),
        ({"rotary_interleaved": 1}, r"rotary_interleaved: got 1, allowed: 0 \(do_rotary is 0\)"),
        ({"rotary_offset": 4}, "rotary_offset: got 4"),
        ({"v_head_size": 16}, "v_head_size: got 16"),
        ({"is_causal": 0}, "is_causal: got 0, allowed: 1"),
        ({"k_quant_type": "PER_TENSOR"}, 'k_quant_type: got "PER_TENSOR", allowed: "NONE"'),
        ({"v_quant_type": "PER_CHANNEL"}, "v_quant_type"),
        ({"kv_cache_layout": "BSNH"}, "kv_cache_layout"),
        ({"k_cache_dtype": "int8"}, "k_cache_dtype"),
        ({"v_cache_dtype": "int8"}, "v_cache_dtype"),
        ({"qk_norm_epsilon": -1.0}, r"qk_norm_epsilon: got -1\.0+, allowed: 0 to 1"),
    ],
    ids=str,
)
def test_an_attribute_that_cannot_be_honoured_is_refused_when_the_session_is_made(
    attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match="fastserve::PagedAttention: attribute " + message):
        make_session(with_attributes(Shape(), **attributes))


def test_mirrored_attributes_at_their_defaults_are_accepted() -> None:
    make_session(with_attributes(Shape(), do_rotary=0, is_causal=1, k_quant_type="NONE", local_window_size=-1, softcap=0.0))


def test_caches_of_two_element_types_are_refused() -> None:
    shape = Shape(kv_dtype="fp16")
    feeds = Pool(shape, [5]).feeds(random_tokens(shape, [5]), [Chunk(0, 0, 5)])
    model_of_both = make_session(shape, value_dtype="fp32")
    with pytest.raises(Exception, match=r"key_cache, value_cache: got element types 10, 1, allowed: both float"):
        run_op(model_of_both, feeds | {"value_cache": feeds["value_cache"].astype(np.float32)})
