"""Text to token ids and back, by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from fastserve.errors import ManifestError
from fastserve.manifest import TokenizerSpec
from fastserve.text.windows import Window, WindowLimits, check_size, cut_window, whole_window


class Tokenizer:
    """One model's tokenizer. Thread-safe: encoding and decoding change nothing."""

    def __init__(self, directory: Path, spec: TokenizerSpec) -> None:
        """Raises ManifestError when the tokenizer file cannot be read."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(directory / spec.file))
        except Exception as error:  # the library raises bare Exception
            raise ManifestError(f"{directory / spec.file}: not a tokenizer file ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.longest_token_bytes = self._longest_token_bytes()
        """No token stands for more bytes of text than this; None when one may stand for any number (an unknown word)."""

    @property
    def size(self) -> int:
        """No id is as large as this; added tokens count, and ids may have gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def to_json(self) -> str:
        """The whole tokenizer, as its library writes it."""
        return str(self._tokenizer.to_str())

    def _longest_token_bytes(self) -> int | None:
        keeps_bytes = "ByteLevel" in repr(self._tokenizer.pre_tokenizer) or getattr(self._tokenizer.model, "byte_fallback", False)
        if not keeps_bytes:
            return None
        return max(len(token.encode()) for token in self._tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """``add_special_tokens``: put the model's own begin / end tokens around the text (a rendered chat has them already)."""
        # The batch call releases the GIL, so that a long text does not hold up the other threads.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Bytes that are not valid UTF-8 appear as U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def windows_batch(self, texts: Sequence[str], pairs: Sequence[str] | None, limits: WindowLimits) -> list[list[Window]]:
        """The windows of each text, or of each text with its pair, the model's own special tokens included; at least one.

        Raises RequestTooLong when one text of a pair is too long to be whole in every window, or all of them make more
        windows than a request may have.
        """
        found: list[list[Window]] = []
        num_windows = num_tokens = 0
        for whole in self.whole_windows(texts, pairs):
            found.append(cut_window(whole, limits))
            num_windows += len(found[-1])
            num_tokens += sum(map(len, found[-1]))
            check_size(num_windows, num_tokens, limits.fields[0])
        return found

    def whole_windows(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Window]:
        """Each text, or each text with its pair, uncut, however long, with the model's own special tokens."""
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [whole_window(encoding) for encoding in self._tokenizer.encode_batch(inputs)]

    def num_special_tokens(self, *, pair: bool) -> int:
        """Number of tokens that are put around a text, or around and between the texts of a pair."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    def token_id(self, token: str) -> int | None:
        """None: no such token."""
        token_id = self._tokenizer.token_to_id(token)
        return None if token_id is None else int(token_id)

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own text of each token, with its marks of spaces and continuation ("" for an unknown id)."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def join_tokens(self, tokens: Sequence[str]) -> str:
        """The text that tokens stand for side by side; pieces of text among them are taken as they are where the model's
        decoder knows no better."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @property
    def marks_continuation(self) -> bool:
        """Whether a token shows that it goes on with the word before it, as WordPiece's "##" does."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))
