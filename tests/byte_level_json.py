"""The tokenizer file of a tokenizer whose ids are bytes."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def byte_level_json(special_tokens: Mapping[int, str]) -> str:
    """Ids 0..255 are the bytes, those that follow the special tokens; no merges."""
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {text: token_id for token_id, text in special_tokens.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special_tokens.values()])
    return str(tokenizer.to_str())


def _letters() -> list[str]:
    """The printable character that stands for each byte: itself, or the next one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
