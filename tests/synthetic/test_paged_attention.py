"""fastserve::PagedAttention against a float64 oracle, and bit against bit with itself.

What it refuses is in test_paged_attention_errors.py.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve.errors import ToolError
from fastserve.worker import kernels
from tests.synthetic.paged_attention_oracle import (
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

LENGTHS = [3, 150, 1, 64, 97]
SINK = np.linspace(-1.0, 3.0, 6).astype(np.float32)
# Every feature at once: what all of them together keep, each alone keeps.
LOADED = with_attributes(Shape(num_heads=6, kv_num_heads=2, sink=True), local_window_size=70, softcap=5.0, scale=0.3)


def assert_matches_oracle(shape: Shape, tokens: list[Tokens], rows: list[Array], sink: Array | None = None) -> None:
    for sequence, output in zip(tokens, rows, strict=True):
        np.testing.assert_allclose(output, oracle(shape, sequence, sink), rtol=2e-5, atol=1e-5)


def assert_same_bits(left: list[Array], right: list[Array]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("head_size", [8, 16, 24, 32, 64, 80, 96, 128, 256])
def test_a_mixed_packed_batch_matches_the_oracle_for_every_head_size(isa: str, head_size: int, kv_dtype: str) -> None:
    shape = Shape(head_size=head_size, kv_dtype=kv_dtype)
    lengths = [70, 33, 1, 20]
    tokens = random_tokens(shape, lengths)
    prefill_then_decode = [
        [Chunk(0, 0, 69), Chunk(1, 0, 5)],
        [Chunk(1, 5, 28), Chunk(0, 69, 1), Chunk(3, 0, 19), Chunk(2, 0, 1)],
        [Chunk(3, 19, 1)],
    ]
    rows = run_steps(make_session(shape), Pool(shape, lengths), tokens, prefill_then_decode)
    assert_matches_oracle(shape, tokens, rows)


@pytest.mark.parametrize(("num_heads", "kv_num_heads"), [(1, 1), (5, 5), (9, 3), (8, 1), (14, 2), (71, 1), (130, 1)])
def test_every_grouping_of_heads_matches_the_oracle(isa: str, num_heads: int, kv_num_heads: int) -> None:
    shape = Shape(num_heads=num_heads, kv_num_heads=kv_num_heads, head_size=16)
    tokens = random_tokens(shape, [40, 9])
    assert_matches_oracle(shape, tokens, run_steps(make_session(shape), Pool(shape, [40, 9]), tokens, whole([40, 9])))


@pytest.mark.parametrize("block_size", [16, 32, 48, 64, 256])
def test_every_block_size_gives_the_same_bits(isa: str, block_size: int) -> None:
    shape = dataclasses.replace(LOADED, block_size=block_size)
    tokens = random_tokens(shape, LENGTHS)
    rows = run_steps(make_session(shape), Pool(shape, LENGTHS), tokens, pieces(LENGTHS, 40), SINK)
    assert_same_bits(rows, run_steps(make_session(LOADED), Pool(LOADED, LENGTHS), tokens, whole(LENGTHS), SINK))


@pytest.mark.parametrize(
    "attributes",
    [
        {"local_window_size": 1},
        {"local_window_size": 17},
        {"local_window_size": 64},
        {"softcap": 2.0},
        {"softcap": 50.0},
        {"scale": 0.05},
        {"scale": 0.7},
        dict(LOADED.attributes),
    ],
    ids=str,
)
@pytest.mark.parametrize("sink", [False, True], ids=["no sink", "sink"])
def test_each_attribute_matches_the_oracle(isa: str, attributes: dict[str, Any], sink: bool) -> None:
    shape = with_attributes(Shape(num_heads=6, kv_num_heads=2, sink=sink), **attributes)
    tokens = random_tokens(shape, [100, 5])
    sinks = SINK if sink else None
    rows = run_steps(make_session(shape), Pool(shape, [100, 5]), tokens, whole([100, 5]), sinks)
    assert_matches_oracle(shape, tokens, rows, sinks)


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("num_heads", "kv_num_heads", "head_size"), [(6, 2, 64), (6, 6, 40), (6, 1, 128)])
def test_the_output_does_not_depend_on_how_a_prompt_is_cut(
    isa: str, num_heads: int, kv_num_heads: int, head_size: int, kv_dtype: str
) -> None:
    for base in (LOADED, Shape(sink=True)):
        shape = dataclasses.replace(base, num_heads=num_heads, kv_num_heads=kv_num_heads, head_size=head_size, kv_dtype=kv_dtype)
        tokens, session = random_tokens(shape, LENGTHS), make_session(shape)
        at_once = run_steps(session, Pool(shape, LENGTHS), tokens, whole(LENGTHS), SINK)
        for size in (1, 7, 64, 100):
            assert_same_bits(run_steps(session, Pool(shape, LENGTHS, seed=size), tokens, pieces(LENGTHS, size), SINK), at_once)


def test_the_output_does_not_depend_on_batch_mates_block_ids_or_order(isa: str) -> None:
    tokens, session = random_tokens(LOADED, LENGTHS), make_session(LOADED)
    together = run_steps(session, Pool(LOADED, LENGTHS), tokens, whole(LENGTHS), SINK)
    for index, length in enumerate(LENGTHS):
        alone = run_steps(session, Pool(LOADED, [length], seed=index + 1), [tokens[index]], whole([length]), SINK)
        assert_same_bits(alone, [together[index]])
    reverse = [list(reversed(whole(LENGTHS)[0]))]
    assert_same_bits(run_steps(session, Pool(LOADED, LENGTHS, seed=9), tokens, reverse, SINK), together)


def test_random_schedules_of_chunks_give_the_same_bits(isa: str) -> None:
    random, tokens, session = np.random.default_rng(5), random_tokens(LOADED, LENGTHS), make_session(LOADED)
    expected = run_steps(session, Pool(LOADED, LENGTHS), tokens, whole(LENGTHS), SINK)
    done, steps = [0] * len(LENGTHS), []
    while done != LENGTHS:
        step = []
        for index in random.permutation(len(LENGTHS)):
            count = min(int(random.integers(0, 30)), LENGTHS[index] - done[index])
            step += [Chunk(int(index), done[index], count)] if count else []
            done[index] += count
        steps += [step] if step else []
    assert_same_bits(run_steps(session, Pool(LOADED, LENGTHS), tokens, steps, SINK), expected)


def test_the_output_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    tokens = random_tokens(LOADED, LENGTHS)
    outputs = [run_steps(make_session(LOADED, n), Pool(LOADED, LENGTHS), tokens, pieces(LENGTHS, 50), SINK) for n in (1, 2, 3)]
    assert_same_bits(outputs[0], outputs[1])
    assert_same_bits(outputs[0], outputs[2])


def test_a_long_context_alone_whose_spans_are_shared_out_gives_the_bits_of_a_crowd(isa: str) -> None:
    """A span is 512 positions. Alone its attention is split by span; beside many others, or many queries, it is not."""
    lengths = [1300, 513] + [40] * 60
    shape = dataclasses.replace(LOADED, attributes=(("local_window_size", 1100), ("softcap", 5.0)))
    tokens = random_tokens(shape, lengths)
    together = run_steps(make_session(shape), Pool(shape, lengths), tokens, whole(lengths), SINK)
    for index in (0, 1):
        for threads in (1, 2, 3):
            pool, session = Pool(shape, [lengths[index]]), make_session(shape, threads)
            steps = [[Chunk(0, 0, lengths[index] - 9)], *[[Chunk(0, lengths[index] - left, 1)] for left in range(9, 0, -1)]]
            assert_same_bits(run_steps(session, pool, [tokens[index]], steps, SINK), [together[index]])
        assert_matches_oracle(shape, [tokens[index]], [together[index]], SINK)


def test_one_session_can_run_from_several_threads_at_once(isa: str) -> None:
    tokens, session = random_tokens(LOADED, LENGTHS), make_session(LOADED)
    expected = run_steps(session, Pool(LOADED, LENGTHS), tokens, pieces(LENGTHS, 20), SINK)
    outputs: list[list[Array]] = [[], [], []]

    def work(index: int) -> None:
        outputs[index] = run_steps(session, Pool(LOADED, LENGTHS, seed=index), tokens, pieces(LENGTHS, 20), SINK)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(outputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for output in outputs:
        assert_same_bits(output, expected)


def test_a_long_context_and_huge_scores_stay_exact(isa: str) -> None:
    shape = with_attributes(Shape(head_size=16), scale=60.0)
    tokens = random_tokens(shape, [700])
    rows = run_steps(make_session(shape), Pool(shape, [700]), tokens, [[Chunk(0, 0, 699)], [Chunk(0, 699, 1)]])
    np.testing.assert_allclose(rows[0], oracle(shape, tokens[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_later_tokens_of_a_sequence_never_leak_into_earlier_ones(isa: str, poison: float) -> None:
    tokens, session = random_tokens(LOADED, [90]), make_session(LOADED)
    clean = run_steps(session, Pool(LOADED, [90]), tokens, whole([90]), SINK)[0]
    tokens[0].key[77:] = poison
    tokens[0].value[77:] = poison
    assert_same_bits([run_steps(session, Pool(LOADED, [90]), tokens, whole([90]), SINK)[0][:77]], [clean[:77]])


def test_tokens_before_the_window_never_leak_into_later_ones(isa: str) -> None:
    tokens, session = random_tokens(LOADED, [150]), make_session(LOADED)
    clean = run_steps(session, Pool(LOADED, [150]), tokens, whole([150]), SINK)[0]
    tokens[0].key[:10] = np.nan
    tokens[0].value[:10] = np.nan
    assert_same_bits([run_steps(session, Pool(LOADED, [150]), tokens, whole([150]), SINK)[0][79:]], [clean[79:]])


def test_a_broken_query_gives_a_broken_row_and_no_other(isa: str) -> None:
    tokens, session = random_tokens(LOADED, [20]), make_session(LOADED)
    clean = run_steps(session, Pool(LOADED, [20]), tokens, whole([20]), SINK)[0]
    tokens[0].query[11] = np.nan
    rows = run_steps(session, Pool(LOADED, [20]), tokens, whole([20]), SINK)[0]
    assert np.isnan(rows[11]).all()
    assert_same_bits([np.delete(rows, 11, axis=0)], [np.delete(clean, 11, axis=0)])


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("head_size", [24, 64])
def test_the_caches_hold_what_the_manifest_says_rounded_to_nearest_even(isa: str, kv_dtype: str, head_size: int) -> None:
    shape = Shape(head_size=head_size, kv_dtype=kv_dtype, block_size=32)
    tokens, pool = random_tokens(shape, [45])[0], Pool(shape, [45])
    exponents = np.random.default_rng(3).integers(-28, 18, tokens.key.shape)  # subnormal halves, ties and overflow included
    tokens.key[:] = np.ldexp(np.round(tokens.key * 2048) / 2048, exponents)
    run_steps(make_session(shape), pool, [tokens], pieces([45], 11))
    with np.errstate(over="ignore"):
        expected = tokens.key.astype(pool.key_cache.dtype).reshape(45, shape.kv_num_heads, head_size)
    for position in range(45):
        block, offset = pool.tables[0][position // 32], position % 32
        assert pool.key_cache[block, :, :, offset].tobytes() == expected[position].tobytes()
        assert (pool.value_cache[block, :, offset, :].ravel() == tokens.value[position].astype(pool.value_cache.dtype)).all()
    assert np.isnan(pool.key_cache[pool.tables[0][1], :, :, 13:]).all(), "slots nobody owns are left alone"


def test_a_slot_of_minus_one_leaves_the_caches_untouched_and_reads_what_is_there(isa: str) -> None:
    tokens, session, pool = random_tokens(LOADED, [90]), make_session(LOADED), Pool(LOADED, [90])
    rows = run_steps(session, pool, tokens, whole([90]), SINK)[0]
    before = pool.key_cache.tobytes(), pool.value_cache.tobytes()
    again = pool.feeds(tokens, [Chunk(0, 30, 60)], SINK)
    again |= {"slot_mapping": np.full(60, -1, np.int32), "key": again["key"] * 0 + 9, "value": again["value"] * 0 + 9}
    assert_same_bits([run_op(session, again)], [rows[30:]])
    assert (pool.key_cache.tobytes(), pool.value_cache.tobytes()) == before


def test_without_a_slot_mapping_tokens_go_where_the_block_table_puts_them(isa: str) -> None:
    shape = dataclasses.replace(LOADED, slot_mapping=False)
    tokens = random_tokens(shape, LENGTHS)
    rows = run_steps(make_session(shape), Pool(shape, LENGTHS), tokens, pieces(LENGTHS, 40), SINK)
    assert_same_bits(rows, run_steps(make_session(LOADED), Pool(LOADED, LENGTHS), tokens, whole(LENGTHS), SINK))


def test_blocks_before_the_window_may_be_unmapped(isa: str) -> None:
    tokens, session, pool = random_tokens(LOADED, [150]), make_session(LOADED), Pool(LOADED, [150])
    expected = run_steps(session, pool, tokens, whole([150]), SINK)[0]
    feeds = pool.feeds(tokens, [Chunk(0, 149, 1)], SINK)
    feeds["block_table"][0, :5] = -1  # positions 0 to 79; the query at 149 sees 80 to 149
    assert_same_bits([run_op(session, feeds)], [expected[149:]])


def test_sequences_without_new_tokens_and_empty_batches_are_fine(isa: str) -> None:
    tokens, session, pool = random_tokens(LOADED, [20, 30]), make_session(LOADED), Pool(LOADED, [20, 30])
    chunks = [Chunk(0, 0, 0), Chunk(1, 0, 30), Chunk(0, 20, 0)]
    assert_matches_oracle(LOADED, tokens[1:], [run_op(session, pool.feeds(tokens, chunks, SINK))], SINK)
    assert run_op(session, pool.feeds(tokens, [Chunk(0, 0, 0)], SINK)).shape == (0, 6 * 32)


def test_the_environment_can_ask_for_a_lower_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    order = ["generic", "avx2", "avx512"]
    monkeypatch.delenv("FASTSERVE_ISA", raising=False)
    best = kernels.isa()
    for wanted in order:
        monkeypatch.setenv("FASTSERVE_ISA", wanted)
        assert kernels.isa() == min(wanted, best, key=order.index)


def test_a_library_that_was_not_built_is_reported_with_the_way_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ToolError, match="not built; `pip install"):
        kernels.library_path()


def test_a_pool_of_more_than_two_to_the_31_elements_is_addressed_right() -> None:
    shape = Shape(num_heads=8, kv_num_heads=8, head_size=256, block_size=256, kv_dtype="fp16")
    tokens = random_tokens(shape, [300])
    num_blocks = 2**31 // (8 * 256 * 256) + 5
    pool = Pool(shape, [300])
    # Never touched but for two blocks: the operating system commits memory on the first write.
    pool.key_cache = np.zeros((num_blocks, 8, 256, 256), np.float16)
    pool.value_cache = np.zeros((num_blocks, 8, 256, 256), np.float16)
    pool.tables = [np.array([num_blocks - 1, num_blocks - 2], np.int32)]
    (rows,) = run_steps(make_session(shape), pool, tokens, whole([300]))
    assert pool.key_cache.size > 2**31
    np.testing.assert_allclose(rows, oracle(shape, tokens[0]), atol=2e-5)
    assert not pool.key_cache[:4].any()
