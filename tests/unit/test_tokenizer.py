"""The tokenizer: the file decides, except for padding and truncation, which packing has no use for."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from fastserve.errors import ManifestError
from fastserve.manifest import TokenizerSpec
from fastserve.text.tokenizer import Tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS = len(BYTES)


def write_tokenizer(directory, **settings):
    """A byte-level tokenizer that puts <s> in front; ``settings``: truncation, padding."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    if "truncation" in settings:
        tokenizer.enable_truncation(settings["truncation"])
    if "padding" in settings:
        tokenizer.enable_padding(length=settings["padding"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory, TokenizerSpec("tokenizer.json", ()))


def test_text_becomes_ids_with_the_models_own_begin_token(tmp_path):
    ids = write_tokenizer(tmp_path).encode("hé")
    assert ids[0] == BOS
    assert len(ids) == 1 + 3
    assert isinstance(ids, tuple)


def test_a_rendered_chat_gets_no_second_begin_token(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    assert tokenizer.encode("hi", add_special_tokens=False) == tokenizer.encode("hi")[1:]
    assert tokenizer.encode("<s>hi", add_special_tokens=False) == tokenizer.encode("hi")


def test_special_tokens_are_left_out_of_text_unless_asked_for(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    ids = tokenizer.encode("hi")
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>hi"


def test_text_survives_the_way_there_and_back(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    for text in ("", "plain", "  two spaces ", "日本語 👩‍👩‍👧 naïve\n\ttab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_are_not_utf8_appear_as_the_replacement_character(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    ids = tokenizer.encode("é", add_special_tokens=False)
    assert tokenizer.decode(ids[:1]) == "\ufffd"


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path):
    tokenizer = write_tokenizer(tmp_path, truncation=4, padding=50)
    assert len(tokenizer.encode("x" * 20, add_special_tokens=False)) == 20


def test_the_size_counts_added_tokens(tmp_path):
    assert write_tokenizer(tmp_path).size == len(BYTES) + 1


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_missing_or_damaged_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ManifestError, match=r"tokenizer\.json: not a tokenizer file"):
        Tokenizer(tmp_path, TokenizerSpec("tokenizer.json", ()))


def test_a_tokenizer_with_an_unknown_word_has_no_longest_token(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path, TokenizerSpec("tokenizer.json", eos_token_ids=()))
    assert made.longest_token_bytes is None
    assert made.encode("hello " + "x" * 5000) == (1, 0)
