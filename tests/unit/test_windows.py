"""Windows of long texts: where the tokenizers library would cut, nothing lost, the other text of a pair whole in each."""

from __future__ import annotations

import functools
import itertools
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.errors import RequestTooLong
from fastserve.text.windows import WindowLimits, window_starts
from tests.encoder_doubles import CLS, IDS, MASK, SEP, UNK, byte_level, loaded, word_level

TEXTS = ["a b c d e f g h", "日本語 👩‍👩‍👧‍👦 e\u0301 naïve", "", "   \n\t ", "a", "x" * 50, "the film is good . " * 8]
ENDLESS = 10_000
KINDS = {"words": word_level, "bytes": byte_level}


@functools.cache
def tokenizer_of(kind):
    with tempfile.TemporaryDirectory() as directory:
        return loaded(KINDS[kind](), Path(directory))


def windows(text, pair=None, kind="words", *, max_length=ENDLESS, stride=0, **more):
    pairs = None if pair is None else [pair]
    (found,) = tokenizer_of(kind).windows_batch([text], pairs, WindowLimits(max_length, stride, **more))
    return found


def words(window):
    names = {token_id: word for word, token_id in IDS.items()}
    return " ".join(names[token_id] for token_id in window.token_ids)


def library_windows(kind, text, pair, max_length, stride, strategy):
    """The library's own truncation, in the shape of a Window."""
    tokenizer = KINDS[kind]()
    tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy)
    encoding = tokenizer.encode(text, pair)
    return [fields_of_encoding(item) for item in (encoding, *encoding.overflowing)]


def fields_of_encoding(item):
    special = [bool(mask) for mask in item.special_tokens_mask]
    return [tuple(part) for part in (item.ids, item.type_ids, item.offsets, item.sequence_ids, item.word_ids, special)]


def fields_of_window(item):
    special = tuple(owner is None for owner in item.sequence_ids)
    return [item.token_ids, item.token_type_ids, item.offsets, item.sequence_ids, item.word_ids, special]


# --- a text that fits -------------------------------------------------------------------------------------------------


def test_a_text_that_fits_is_one_window_with_the_models_special_tokens():
    (window,) = windows("the film")
    assert window.token_ids == (CLS, IDS["the"], IDS["film"], SEP)
    assert window.token_type_ids == (0, 0, 0, 0)
    assert window.offsets == ((0, 0), (0, 3), (4, 8), (0, 0))
    assert window.sequence_ids == (None, 0, 0, None)
    assert window.word_ids == (None, 0, 1, None)
    assert (len(window), window.first_token) == (4, 0)


def test_a_pair_has_token_types_and_offsets_of_each_text():
    (window,) = windows("a b", "c")
    assert words(window) == "[CLS] a b [SEP] c [SEP]"
    assert window.token_type_ids == (0, 0, 0, 0, 1, 1)
    assert window.sequence_ids == (None, 0, 0, None, 1, None)
    assert window.offsets == ((0, 0), (0, 1), (2, 3), (0, 0), (0, 1), (0, 0))
    assert (window.run(0), window.run(1)) == ((1, 3), (4, 5))


def test_a_special_token_within_the_text_belongs_to_the_text():
    (window,) = windows("a [MASK] b")
    assert window.token_ids[2] == MASK and window.sequence_ids == (None, 0, 0, 0, None)


def test_offsets_count_characters_whatever_their_bytes():
    (window,) = windows("日本 👩‍👧 é a")
    assert [window.offsets[index] for index in range(*window.run(0))] == [(0, 2), (3, 4), (4, 5), (5, 6), (7, 8), (9, 10)]
    (window,) = windows("é", kind="bytes")
    assert window.offsets[1:-1] == ((0, 1), (0, 1))


def test_offsets_are_those_of_the_text_that_was_sent_also_where_it_is_normalised():
    (window,) = windows("e\u0301e\u0301 a")  # two characters become one, twice
    assert window.offsets[1:-1] == ((0, 3), (5, 6))


@pytest.mark.parametrize("text", ["", "   \n\t "])
def test_a_text_without_words_is_its_special_tokens(text):
    (window,) = windows(text)
    assert window.token_ids == (CLS, SEP)
    assert window.run(0) == (0, 0)
    assert windows(text, "a")[0].token_ids == (CLS, SEP, IDS["a"], SEP)


def test_a_text_that_fits_exactly_is_not_cut():
    assert len(windows("a b c", max_length=5)) == 1
    assert len(windows("a b c", max_length=4)) > 1


# --- cutting ----------------------------------------------------------------------------------------------------------


def test_windows_share_the_stride_and_know_where_they_begin():
    found = windows("a b c d e f g h", max_length=6, stride=1)
    assert [words(window) for window in found] == [
        "[CLS] a b c d [SEP]",
        "[CLS] d e f g [SEP]",
        "[CLS] g h [SEP]",
    ]
    assert [window.first_token for window in found] == [0, 3, 6]
    assert found[2].offsets == ((0, 0), (12, 13), (14, 15), (0, 0))
    assert found[2].word_ids == (None, 6, 7, None)


def test_of_a_pair_the_second_text_is_cut_and_the_first_is_whole():
    found = windows("a b", "c d e f g", max_length=8, stride=1)
    assert [words(window) for window in found] == ["[CLS] a b [SEP] c d e [SEP]", "[CLS] a b [SEP] e f g [SEP]"]
    assert [window.first_token for window in found] == [0, 2]


def test_the_first_text_is_cut_on_demand():
    found = windows("c d e f g", "a b", max_length=8, stride=1, cut="first")
    assert [words(window) for window in found] == ["[CLS] c d e [SEP] a b [SEP]", "[CLS] e f g [SEP] a b [SEP]"]
    assert found[1].token_type_ids == (0, 0, 0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize(("cut", "shown"), [("first", "a b"), ("second", "a b"), ("longest", "a b")])
def test_truncation_keeps_the_first_window_only(cut, shown):
    (window,) = windows("a b c d", max_length=4, truncation=True, cut=cut)
    assert words(window) == f"[CLS] {shown} [SEP]"


def test_truncation_takes_from_the_text_it_is_told_to():
    texts = ("a b c d", "e f g")
    shown = {cut: words(windows(*texts, max_length=8, truncation=True, cut=cut)[0]) for cut in ("first", "second", "longest")}
    assert shown == {
        "first": "[CLS] a b [SEP] e f g [SEP]",
        "second": "[CLS] a b c d [SEP] e [SEP]",
        "longest": "[CLS] a b c [SEP] e f [SEP]",
    }


@pytest.mark.parametrize(("cut", "field"), [("second", "question"), ("first", "context")])
@pytest.mark.parametrize("truncation", [False, True])
def test_a_text_that_leaves_no_room_for_the_one_that_is_cut_is_named(cut, field, truncation):
    texts = ("a b c d e f", "g h a b c d")
    with pytest.raises(
        RequestTooLong, match=rf"^{field}: got '6 tokens', allowed: at most 4, so that (question|context) has"
    ) as e:
        windows(*texts, max_length=8, cut=cut, truncation=truncation, fields=("question", "context"))
    assert e.value.field == field
    with pytest.raises(RequestTooLong, match=r"got '5 tokens', allowed: at most 4"):
        windows("a b c d e", "a b c d e", max_length=8, cut=cut, truncation=truncation)
    shorter = [
        " ".join(text.split()[:4]) if name == field else text for text, name in zip(texts, ("question", "context"), strict=True)
    ]
    assert windows(*shorter, max_length=8, cut=cut, truncation=truncation)


def test_a_pair_that_fits_may_have_a_text_without_tokens():
    (window,) = windows("a b c", "  ", max_length=6)
    assert words(window) == "[CLS] a b c [SEP] [SEP]"


def test_where_the_second_text_has_no_tokens_the_first_is_cut():
    found = windows("a b c d", "  ", max_length=6, stride=1)
    assert [words(window) for window in found] == ["[CLS] a b c [SEP] [SEP]", "[CLS] c d [SEP] [SEP]"]


def test_keeping_a_part_of_a_text_keeps_all_of_the_rest():
    (window,) = windows("a b c", "d e f")
    first, second = window.run(0), window.run(1)
    assert words(window.keep(second, 1, 3)) == "[CLS] a b c [SEP] e f [SEP]"
    assert words(window.keep(first, 0, 99)) == words(window)
    shorter = window.keep(first, 1, 2)
    assert words(shorter.keep(shorter.run(1), 0, 1)) == "[CLS] b [SEP] d [SEP]"
    shorter = window.keep(first, 1, 3)
    assert shorter.keep(shorter.run(0), 1, 2).first_token == 2


def test_unknown_words_are_tokens_too():
    assert windows("zebra a")[0].token_ids == (CLS, UNK, IDS["a"], SEP)


# --- against the library ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stride", [0, 3])
def test_windows_of_a_text_are_those_of_the_library(kind, text, stride):
    expected = library_windows(kind, text, None, 9, stride, "longest_first")
    assert [fields_of_window(window) for window in windows(text, kind=kind, max_length=9, stride=stride)] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("cut", ["first", "second"])
def test_windows_of_a_pair_are_those_of_the_library(kind, text, cut):
    texts = (text, "a good film") if cut == "first" else ("a good film", text)
    expected = library_windows(kind, *texts, 24, 3, f"only_{cut}")
    assert [fields_of_window(window) for window in windows(*texts, kind=kind, max_length=24, stride=3, cut=cut)] == expected


@settings(max_examples=300, deadline=None)
@given(first=st.integers(0, 30), second=st.integers(0, 30), max_length=st.integers(5, 40), kind=st.sampled_from(sorted(KINDS)))
def test_truncation_of_the_longest_is_that_of_the_library(first, second, max_length, kind):
    texts = " ".join("a" * first), " ".join("b" * second)
    (window,) = windows(*texts, kind=kind, max_length=max_length, truncation=True, cut="longest")
    assert fields_of_window(window) == library_windows(kind, *texts, max_length, 0, "longest_first")[0]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60), max_length=st.integers(4, 20), stride=st.integers(0, 20), kind=st.sampled_from(sorted(KINDS)))
def test_the_windows_hold_every_token_of_any_text(text, max_length, stride, kind):
    (whole,) = windows(text, kind=kind)
    begin, stop = whole.run(0)
    tokens, seen = whole.token_ids[begin:stop], {}
    for window in windows(text, kind=kind, max_length=max_length, stride=stride):
        assert len(window) <= max_length
        run = window.run(0)
        for index in range(*run):
            place = window.first_token + index - run[0]
            seen[place] = window.token_ids[index], window.offsets[index]
    assert [seen[place][0] for place in sorted(seen)] == list(tokens)
    assert [seen[place][1] for place in sorted(seen)] == list(whole.offsets[begin:stop])


@settings(max_examples=300, deadline=None)
@given(length=st.integers(1, 3000), room=st.integers(1, 600), stride=st.integers(0, 700))
def test_a_window_moves_on_by_an_eighth_of_its_room_at_least(length, room, stride):
    starts = list(window_starts(length, room, stride))
    steps = {after - before for before, after in itertools.pairwise(starts)}
    assert starts[0] == 0
    assert starts[-1] + room >= length
    assert all(start + room < length for start in starts[:-1])
    assert steps <= {room - min(stride, room - max(1, room // 8))}


# --- several at once --------------------------------------------------------------------------------------------------


def test_a_batch_has_the_windows_of_each_text_alone():
    tokenizer = tokenizer_of("words")
    limits = WindowLimits(8, 2)
    batch = tokenizer.windows_batch(TEXTS, None, limits)
    assert batch == [tokenizer.windows_batch([text], None, limits)[0] for text in TEXTS]
    pairs = tokenizer.windows_batch(["a b"] * len(TEXTS), TEXTS, limits)
    assert pairs == [tokenizer.windows_batch(["a b"], [text], limits)[0] for text in TEXTS]


def test_threads_with_different_limits_do_not_disturb_each_other():
    tokenizer, text = tokenizer_of("words"), "a b c d e f g h " * 20
    limits = [WindowLimits(8, 2), WindowLimits(12, 0, truncation=True), WindowLimits(ENDLESS, 0)]
    expected = [tokenizer.windows_batch([text], None, limit) for limit in limits]
    wrong = []

    def work(index):
        for _ in range(100):
            if tokenizer.windows_batch([text], None, limits[index]) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(limits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert tokenizer.encode(text)[:2] == (CLS, IDS["a"])


def test_the_number_of_special_tokens_is_known_before_there_is_a_text():
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        assert tokenizer.num_special_tokens(pair=False) == windows("a", kind=kind)[0].sequence_ids.count(None)
        assert tokenizer.num_special_tokens(pair=True) == windows("a", "a", kind=kind)[0].sequence_ids.count(None)


def test_a_token_is_known_by_its_text_or_not_at_all():
    assert tokenizer_of("words").token_id("[MASK]") == MASK
    assert tokenizer_of("words").token_id("zebra") is None
