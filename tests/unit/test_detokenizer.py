"""Text one token at a time: whole characters, nothing lost, and stop strings wherever the pieces are cut."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from fastserve.text.detokenizer import LONGEST_WAIT, REPLACEMENT, IncrementalDetokenizer, StopStrings
from tests.doubles import ByteTokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "Zażółć gęślą jaźń. Ça va très bien, naïve façade, œuvre.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを。データベースのサーバー。",
    "我能吞下玻璃而不伤身体。汉字汉字汉字",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪🇫🇷 e\u0301 combining 𝒳𝓎𝓏",
    "€€€€€€€€€€€€ ฿฿฿ ₿₿₿ नमस्ते दुनिया مرحبا بالعالم",
    "  leading, double  spaces\n\n\ttabs and\r\nlines   ",
]
ANY_TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters=REPLACEMENT), max_size=60)


class WrappedTokenizer:
    """A ``tokenizers`` tokenizer with the signatures of ``text.tokenizer.Tokenizer``."""

    def __init__(self, tokenizer):
        self.inner = tokenizer

    def encode(self, text, *, add_special_tokens=True):
        return self.inner.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids, *, skip_special_tokens=True):
        return self.inner.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


class PieceTokenizer:
    """Token ids stand for any strings of bytes, as merges across characters do."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, token_ids, *, skip_special_tokens=True):
        return b"".join(self.pieces[index] for index in token_ids).decode(errors="replace")


@functools.cache
def byte_level_bpe():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=500, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    )
    return WrappedTokenizer(tokenizer)


@functools.cache
def sentencepiece_like():
    """Llama's layout: a space is "▁", unknown characters fall back to bytes, the first space is stripped."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["</s>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, limit_alphabet=70, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in TEXTS[:2]] * 3, trainer)
    description = json.loads(tokenizer.to_str())  # training forgets byte_fallback and makes the bytes special
    description["model"]["byte_fallback"] = True
    description["added_tokens"] = [token for token in description["added_tokens"] if not token["content"].startswith("<0x")]
    plain = tokenizers.Tokenizer.from_str(json.dumps(description))
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return WrappedTokenizer(plain)


@functools.cache
def metaspace():
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=450, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    return WrappedTokenizer(tokenizer)


TOKENIZERS = {
    "bytes": ByteTokenizer,
    "byte-level BPE": byte_level_bpe,
    "sentencepiece": sentencepiece_like,
    "metaspace": metaspace,
}


def deltas(decoder, token_ids, **settings):
    """What each push gives, then what flush gives."""
    detokenizer = IncrementalDetokenizer(decoder, **settings)
    return [detokenizer.push(token_id) for token_id in token_ids] + [detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_deltas_add_up_to_the_whole_text_and_hold_only_whole_characters(name, text):
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = deltas(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)
    assert REPLACEMENT not in "".join(shown)


def test_the_trained_tokenizers_do_split_characters_and_merge_words():
    for tokenizer in (byte_level_bpe(), sentencepiece_like()):
        assert any(REPLACEMENT in tokenizer.decode([i]) for text in TEXTS for i in tokenizer.encode(text))
    for tokenizer in (byte_level_bpe(), sentencepiece_like(), metaspace()):
        assert len(tokenizer.encode("The quick dog")) < len("The quick dog")
        assert tokenizer.decode(tokenizer.encode("The quick dog")) == "The quick dog"


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_out_as_it_went_in(text):
    for tokenizer in (ByteTokenizer(), byte_level_bpe(), sentencepiece_like()):
        ids = tokenizer.encode(text, add_special_tokens=False)
        shown = "".join(deltas(tokenizer, ids))
        assert shown == tokenizer.decode(ids)
        assert REPLACEMENT not in shown


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT, data=st.data())
def test_tokens_may_cut_characters_anywhere_and_begin_the_next_one(text, data):
    content = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(content)), max_size=40)) | {0, len(content)})
    decoder = PieceTokenizer([content[start:end] for start, end in itertools.pairwise(cuts)])
    assert "".join(deltas(decoder, range(len(cuts) - 1))) == text


def test_a_long_chain_of_tokens_that_each_end_inside_a_character_is_no_damage():
    content = ("€" * 40).encode()
    decoder = PieceTokenizer([content[:1]] + [content[start : start + 3] for start in range(1, len(content), 3)])
    assert "".join(deltas(decoder, range(len(decoder.pieces)))) == "€" * 40


def test_a_character_is_shown_with_its_last_byte():
    assert deltas(ByteTokenizer(), "a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_text_that_ends_inside_a_character_is_released_by_flush():
    assert deltas(ByteTokenizer(), "a€".encode()[:-1]) == ["a", "", "", REPLACEMENT]


def test_bytes_that_never_become_a_character_do_not_hold_the_text_back_for_ever():
    shown = deltas(ByteTokenizer(), [0xFF] * (LONGEST_WAIT + 1) + list(b"ok"))
    assert "".join(shown) == REPLACEMENT * (LONGEST_WAIT + 1) + "ok"
    assert any(shown[: LONGEST_WAIT + 1])


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_at_all_give_text_and_never_lose_the_ascii_at_the_end(ids):
    shown = "".join(deltas(ByteTokenizer(), [*ids, *b"end"]))
    assert shown.endswith("end")


def test_special_tokens_are_skipped_or_shown_as_asked():
    ids = [256, *b"hi", 257]
    assert "".join(deltas(ByteTokenizer(), ids)) == "hi"
    assert "".join(deltas(ByteTokenizer(), ids, skip_special_tokens=False)) == "<s>hi</s>"


@pytest.mark.parametrize("count", [1, LONGEST_WAIT - 1, LONGEST_WAIT, 3 * LONGEST_WAIT + 2])
def test_skipped_special_tokens_do_not_cost_the_word_behind_them_its_space(count):
    tokenizer = metaspace()
    end = tokenizer.inner.token_to_id("</s>")
    tokenizer.inner.add_special_tokens(["</s>"])
    ids = [*tokenizer.encode("The quick"), *[end] * count, *tokenizer.encode("dog sleeps")]
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids) == "The quick dog sleeps"


def test_the_work_for_a_token_does_not_grow_with_the_text_or_with_skipped_tokens():
    sizes = []

    class Watched(ByteTokenizer):
        def decode(self, token_ids, *, skip_special_tokens=True):
            sizes.append(len(token_ids))
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    deltas(Watched(), [*b"text " * 100, *[257] * 500, *b"more"])
    assert max(sizes) <= 2 * LONGEST_WAIT


# --- stop strings -----------------------------------------------------------------------------------------------------


def run(stop, pieces, *, include=False):
    """Everything shown, and whether a stop string was found."""
    finder = StopStrings(stop, include=include)
    shown = [finder.push(piece) for piece in pieces]
    return "".join(shown) + finder.flush(), finder.found


def test_without_stop_strings_text_passes_at_once():
    finder = StopStrings([])
    assert finder.push("anything") == "anything"
    assert (finder.found, finder.flush()) == (False, "")


@pytest.mark.parametrize("pieces", [["abSTOPcd"], ["ab", "ST", "OP", "cd"], list("abSTOPcd"), ["abS", "TOPcd"]])
def test_a_stop_string_ends_the_text_however_it_is_cut(pieces):
    assert run(["STOP"], pieces) == ("ab", True)
    assert run(["STOP"], pieces, include=True) == ("abSTOP", True)


def test_what_might_begin_a_stop_string_is_held_back_and_released_when_it_does_not():
    finder = StopStrings(["STOP"])
    assert [finder.push(piece) for piece in ("a", "S", "T", "x", "ST")] == ["a", "", "", "STx", ""]
    assert finder.flush() == "ST"
    assert not finder.found


def test_nothing_comes_after_a_stop_string():
    finder = StopStrings(["."])
    assert finder.push("one. two. ") == "one"
    assert (finder.push("three"), finder.flush()) == ("", "")


def test_a_false_start_may_hide_the_true_one():
    assert run(["aab"], list("aaab!")) == ("a", True)
    assert run(["abab c"], list("ababab c")) == ("ab", True)


def test_the_stop_string_that_is_complete_first_wins():
    assert run(["world", "o w"], ["hello world"]) == ("hell", True)
    assert run(["lo world!", "o w"], ["hello world!"]) == ("hell", True)


def test_of_stop_strings_that_end_together_the_longest_wins():
    assert run(["lo", "hello", "o"], list("say hello")) == ("say ", True)


def test_stop_strings_may_be_several_characters_outside_ascii():
    assert run(["终了", "👩‍👧"], ["开始终", "了吗"]) == ("开始", True)
    assert run(["终了", "👩‍👧"], ["ok 👩", "‍", "👧!"], include=True) == ("ok 👩‍👧", True)


def naive(stop, text, include):
    """The definition, one character at a time."""
    for end in range(1, len(text) + 1):
        words = [word for word in stop if text[:end].endswith(word)]
        if words:
            return text[: end if include else end - len(max(words, key=len))], True
    return text, False


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ab.\n", max_size=40),
    stop=st.lists(st.text("ab.\n", min_size=1, max_size=5), max_size=4),
    include=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=10),
)
def test_any_way_of_cutting_the_text_shows_the_same(text, stop, include, cuts):
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    assert run(stop, pieces, include=include) == naive(stop, text, include)


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab", max_size=30), stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_more_is_held_back_than_could_begin_a_stop_string(text, stop):
    finder = StopStrings(stop)
    shown = ""
    for end, character in enumerate(text, 1):
        shown += finder.push(character)
        if finder.found:
            return
        held = text[len(shown) : end]
        assert text[:end] == shown + held
        assert not held or any(word.startswith(held) for word in stop)
