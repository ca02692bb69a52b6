"""The tokenizer's own pieces: what tokens are called, and the text they stand for side by side."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models

from tests.encoder_doubles import IDS, byte_level, loaded, word_level


def word_pieces() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def test_tokens_are_called_as_the_vocabulary_has_them(tmp_path):
    assert loaded(word_level(), tmp_path).tokens([IDS["film"], IDS["[MASK]"], 10_000]) == ["film", "[MASK]", ""]
    pieces = loaded(word_pieces(), tmp_path)
    assert pieces.tokens(pieces.encode("ab")) == ["a", "##b"]


@pytest.mark.parametrize(
    ("make", "pieces", "text"),
    [
        (word_pieces, ["a", "##b", "a"], "ab a"),
        (byte_level, ["Ã", "©", "Ġ", "a"], "é a"),
        (byte_level, ["é a", "b"], "é ab"),
        (word_level, ["a", "b"], "a b"),
        (word_pieces, [], ""),
    ],
)
def test_pieces_side_by_side_are_read_as_the_model_reads_them(make, pieces, text, tmp_path):
    assert loaded(make(), tmp_path).join_tokens(pieces) == text


@pytest.mark.parametrize(("make", "marked"), [(word_pieces, True), (byte_level, False), (word_level, False)])
def test_only_some_tokenizers_mark_that_a_token_goes_on_with_a_word(make, marked, tmp_path):
    assert loaded(make(), tmp_path).marks_continuation is marked
