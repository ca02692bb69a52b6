"""Packing: the flat token axis against arrays computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastserve.worker.batch import BlockTableRows, Packer, SequenceInput, pack

PREFILL = SequenceInput([10, 11, 12], 0, [5, 2], True)
DECODE = SequenceInput([41], 9, [0, 7, 3], True)
CHUNK = SequenceInput([88, 89], 8, [9, 8, 6], False)

DTYPES = {
    "input_ids": np.int64,
    "position_ids": np.int64,
    "cumulative_sequence_length": np.int32,
    "past_seqlens": np.int32,
    "block_table": np.int32,
    "slot_mapping": np.int32,
    "logits_rows": np.int64,
    "cross_block_table": np.int32,
    "cross_seqlens": np.int32,
    "cross_slot_mapping": np.int32,
}


def test_a_prefill_a_decode_and_a_chunk_are_laid_end_to_end():
    batch = pack([PREFILL, DECODE, CHUNK], 4)
    assert batch.input_ids.tolist() == [10, 11, 12, 41, 88, 89]
    assert batch.position_ids.tolist() == [0, 1, 2, 9, 8, 9]
    assert batch.cumulative_sequence_length.tolist() == [0, 3, 4, 6]
    assert batch.past_seqlens.tolist() == [0, 9, 8]
    assert batch.block_table.tolist() == [[5, 2, -1], [0, 7, 3], [9, 8, 6]]
    assert batch.slot_mapping.tolist() == [20, 21, 22, 3 * 4 + 1, 6 * 4, 6 * 4 + 1]
    assert batch.logits_rows.tolist() == [2, 3]
    assert (batch.num_tokens, batch.num_rows) == (6, 2)


def test_the_order_given_is_the_order_packed():
    batch = pack([CHUNK, PREFILL], 4)
    assert batch.input_ids.tolist() == [88, 89, 10, 11, 12]
    assert batch.block_table.tolist() == [[9, 8, 6], [5, 2, -1]]
    assert batch.logits_rows.tolist() == [4]


def test_a_chunk_crosses_from_one_block_into_the_next():
    batch = pack([SequenceInput([1, 2, 3], 3, [6, 1], True)], 4)
    assert batch.slot_mapping.tolist() == [6 * 4 + 3, 1 * 4, 1 * 4 + 1]
    assert batch.position_ids.tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    "inputs", [[PREFILL, DECODE, CHUNK], [], [SequenceInput([1], 0, [], False)]], ids=["mixed", "empty", "encoder"]
)
def test_every_array_has_the_dtype_of_the_graph_contract(inputs):
    batch = pack(inputs, 4)
    assert {field.name: getattr(batch, field.name).dtype for field in dataclasses.fields(batch)} == {
        name: np.dtype(dtype) for name, dtype in DTYPES.items()
    }


def test_the_position_offset_moves_positions_but_never_slots():
    plain, moved = pack([PREFILL, DECODE], 4), pack([PREFILL, DECODE], 4, position_offset=2)
    assert moved.position_ids.tolist() == [2, 3, 4, 11]
    for name in set(DTYPES) - {"position_ids"}:
        assert np.array_equal(getattr(plain, name), getattr(moved, name)), name


def test_cached_leading_tokens_are_run_but_not_written():
    batch = pack([DECODE, PREFILL._replace(num_cached=2), CHUNK._replace(num_cached=1)], 4)
    assert batch.slot_mapping.tolist() == [13, -1, -1, 22, -1, 25]
    assert batch.input_ids.tolist() == [41, 10, 11, 12, 88, 89]


def test_a_prompt_that_is_cached_as_a_whole_writes_nothing_and_still_samples():
    batch = pack([PREFILL._replace(num_cached=3)], 4)
    assert batch.slot_mapping.tolist() == [-1, -1, -1]
    assert batch.logits_rows.tolist() == [2]


def test_encoders_have_no_blocks_and_no_slots():
    batch = pack([SequenceInput([1, 2], 0, [], False), SequenceInput([3], 0, [], False)], 16)
    assert batch.block_table.shape == (2, 0)
    assert batch.slot_mapping.tolist() == [-1, -1, -1]
    assert batch.logits_rows.tolist() == []


def test_a_sequence_without_blocks_beside_one_with_blocks_writes_nowhere():
    batch = pack([SequenceInput([1, 2], 0, [], False), PREFILL], 4)
    assert batch.block_table.tolist() == [[-1, -1], [5, 2]]
    assert batch.slot_mapping.tolist() == [-1, -1, 20, 21, 22]


def test_an_encoder_of_seq2seq_writes_its_cross_keys_through_the_cross_block_table():
    source = SequenceInput([1, 2, 3, 4, 5], 0, [], False, cross_block_table=[3, 1], cross_seqlen=5)
    batch = pack([source, SequenceInput([6], 0, [], False, cross_block_table=[2], cross_seqlen=1)], 4)
    assert batch.cross_slot_mapping.tolist() == [12, 13, 14, 15, 4, 8]
    assert batch.cross_block_table.tolist() == [[3, 1], [2, -1]]
    assert batch.cross_seqlens.tolist() == [5, 1]
    assert batch.slot_mapping.tolist() == [-1] * 6


def test_a_decoder_of_seq2seq_brings_both_tables():
    batch = pack([DECODE._replace(cross_block_table=[4, 11], cross_seqlen=7), PREFILL], 4)
    assert batch.cross_block_table.tolist() == [[4, 11], [-1, -1]]
    assert batch.cross_seqlens.tolist() == [7, 0]
    assert batch.slot_mapping.tolist()[0] == 13


def test_an_empty_batch_packs_to_empty_arrays():
    batch = pack([], 4)
    assert (batch.num_tokens, batch.num_rows) == (0, 0)
    assert batch.cumulative_sequence_length.tolist() == [0]
    assert batch.block_table.shape == (0, 0)


@pytest.mark.parametrize("neighbours", [[], [DECODE]], ids=["alone", "beside a longer table"])
def test_a_block_table_that_is_too_short_is_refused(neighbours):
    short = SequenceInput([1, 2], 3, [6], True)
    with pytest.raises(ValueError, match=r"does not cover"):
        pack([*neighbours, short], 4)


def test_a_block_table_that_is_exactly_long_enough_is_accepted():
    assert pack([SequenceInput([1], 3, [6], True)], 4).slot_mapping.tolist() == [27]


def test_a_block_table_with_room_to_spare_is_accepted():
    assert pack([SequenceInput([1], 0, [6, 7, 8], True)], 4).block_table.tolist() == [[6, 7, 8]]


def test_slots_of_random_batches_agree_with_the_definition():
    rng = np.random.default_rng(3)
    for _ in range(50):
        inputs = []
        for _ in range(rng.integers(1, 6)):
            computed, length = int(rng.integers(0, 20)), int(rng.integers(1, 12))
            blocks = rng.permutation(100)[: -(-(computed + length) // 4)].tolist()
            inputs.append(SequenceInput(rng.integers(0, 50, length).tolist(), computed, blocks, bool(rng.integers(0, 2))))
        batch = pack(inputs, 4)
        places = [(item, item.num_computed + step) for item in inputs for step in range(len(item.token_ids))]
        assert batch.slot_mapping.tolist() == [item.block_table[index // 4] * 4 + index % 4 for item, index in places]
        assert batch.position_ids.tolist() == [index for _, index in places]
        assert batch.num_rows == sum(item.samples for item in inputs)


def test_rows_of_a_prompt_come_before_the_row_that_samples():
    first = SequenceInput([10, 11, 12, 13], 0, [5], samples=True, prompt_rows=range(1, 3))
    second = SequenceInput([20, 21], 0, [6], samples=False, prompt_rows=range(2))
    assert pack([first, DECODE, second], 4).logits_rows.tolist() == [1, 2, 3, 4, 5, 6]


def assert_same_batch(found, wanted):
    for name in DTYPES:
        got, expected = getattr(found, name), getattr(wanted, name)
        if name == "block_table":  # one that was kept may be wider
            assert (got[:, expected.shape[1] :] == -1).all()
            got = got[:, : expected.shape[1]]
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_decodes_alone_are_packed_as_they_are_beside_a_prefill():
    decodes = [DECODE, SequenceInput([7], 3, [6], True), SequenceInput([8], 4, [1, 4], True)]
    alone, mixed = pack(decodes, 4, 2), pack([*decodes, PREFILL], 4, 2)
    for name in ("input_ids", "position_ids", "past_seqlens", "slot_mapping", "logits_rows", "cross_seqlens"):
        assert getattr(alone, name).tolist() == getattr(mixed, name).tolist()[:3], name
    assert alone.cumulative_sequence_length.tolist() == [0, 1, 2, 3]
    assert alone.block_table.tolist() == mixed.block_table.tolist()[:3]


@pytest.mark.parametrize(
    ("change", "slots", "logits_rows"),
    [
        ({}, [13], [0]),
        ({"samples": False}, [13], []),
        ({"samples": False, "prompt_rows": range(1)}, [13], [0]),
        ({"num_cached": 1}, [-1], [0]),
        ({"block_table": []}, [-1], [0]),
    ],
)
def test_one_token_alone_is_packed_with_all_it_brings(change, slots, logits_rows):
    batch = pack([DECODE._replace(**change)], 4)
    assert (batch.slot_mapping.tolist(), batch.logits_rows.tolist()) == (slots, logits_rows)


def test_batches_packed_one_after_another_are_what_they_are_alone():
    """Sequences grow, change places, leave, come back with other blocks, and get a block replaced."""
    packer, chance = Packer(4), np.random.default_rng(0)
    tables = [chance.integers(0, 999, int(chance.integers(1, 30))).tolist() for _ in range(6)]
    for _ in range(200):
        table = tables[chance.integers(len(tables))]
        match chance.integers(4):
            case 0:
                table.append(int(chance.integers(999)))
            case 1:
                table[int(chance.integers(len(table)))] = int(chance.integers(999))
            case 2:
                table[:] = chance.integers(0, 999, int(chance.integers(1, 30))).tolist()
            case _:
                chance.shuffle(tables)
        inputs = [SequenceInput([9], len(table) * 4 - 1, list(table), True) for table in tables[: chance.integers(1, 7)]]
        assert_same_batch(packer.pack(inputs), pack(inputs, 4))


def arrays_of(batch):
    return {name: getattr(batch, name) for name in DTYPES}


def test_as_many_decodes_as_before_are_packed_into_the_arrays_of_before_and_no_other_batch_is():
    packer = Packer(4, position_offset=2)
    two = [DECODE, SequenceInput([7], 3, [6], True)]
    before = arrays_of(packer.pack(two))
    again = [SequenceInput([50], 10, [0, 7, 3], True), SequenceInput([8], 0, [5], True)]
    for inputs in (again, two):
        assert_same_batch(batch := packer.pack(inputs), pack(inputs, 4, 2))
        assert all(array is before[name] for name, array in arrays_of(batch).items())
    for inputs in ([DECODE], [*two, DECODE], [DECODE, PREFILL], [DECODE._replace(samples=False), DECODE], two):
        assert_same_batch(batch := packer.pack(inputs), pack(inputs, 4, 2))
        for name, array in arrays_of(batch).items():
            assert array is not before[name] or array.shape == before[name].shape, name
        before = arrays_of(batch)


def test_decodes_get_new_arrays_when_a_table_outgrows_its_rows():
    packer, table = Packer(4), [3]
    for length in range(1, 90):
        table += [length] * (length % 4 == 0)
        assert_same_batch(
            packer.pack([SequenceInput([1], length, list(table), True)]), pack([SequenceInput([1], length, table, True)], 4)
        )


def test_a_table_that_has_not_changed_is_not_written_again():
    class Watched(list):
        def __iter__(self):
            raise AssertionError("it is read")

    rows = BlockTableRows()
    rows.update([[1, 2], [3]])
    assert rows.update([Watched([1, 2]), [3, 4]]).tolist() == [[1, 2], [3, 4]]
