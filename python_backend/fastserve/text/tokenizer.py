"""Text to token ids and back, by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from fastserve.errors import ManifestError
from fastserve.manifest import TokenizerSpec


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
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

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
