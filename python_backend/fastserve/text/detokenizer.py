"""Token ids to text one token at a time: UTF-8 safe, and cut at stop strings wherever they fall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
LONGEST_WAIT = 8
"""Bytes that may stay undecodable, and tokens that may give no text at all, before they are taken as they are: a UTF-8
character has at most 4 bytes."""


class Decoder(Protocol):
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


class IncrementalDetokenizer:
    """Text grows by whole characters: a token that ends inside a UTF-8 sequence gives "" until the rest arrives.

    A token's text depends on its neighbours (leading spaces, merges), so each step decodes a short window twice, with
    and without the new tokens, and takes the difference. The window moves on whenever the text is complete.
    """

    def __init__(self, decoder: Decoder, *, skip_special_tokens: bool = True) -> None:
        self._decoder = decoder
        self._skip_special_tokens = skip_special_tokens
        self._token_ids: list[int] = []
        self._window = 0  # start of the tokens decoded for context
        self._read = 0  # tokens before this one have given their text

    def push(self, token_id: int) -> str:
        """Add one token; returns the characters that are certain now."""
        self._token_ids.append(token_id)
        fresh = self._fresh_text()
        if not fresh and len(self._token_ids) - self._read >= LONGEST_WAIT:
            self._token_ids.pop()  # a skipped special token: the window must not grow with their number
        if not fresh or 0 < len(fresh) - len(fresh.rstrip(REPLACEMENT)) < LONGEST_WAIT:
            return ""
        self._window, self._read = self._read, len(self._token_ids)
        return fresh

    def flush(self) -> str:
        """What is still held back; an unfinished UTF-8 sequence becomes U+FFFD. Call once, after the last token."""
        fresh = self._fresh_text()
        self._window = self._read = len(self._token_ids)
        return fresh

    def _fresh_text(self) -> str:
        before = self._decode(self._token_ids[self._window : self._read])
        after = self._decode(self._token_ids[self._window :])
        return after[len(before) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


class StopStrings:
    """Finds the earliest stop string in text that arrives in pieces, and holds back what might be the start of one."""

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        """``include``: leave the stop string at the end of the text."""
        self._stop = stop
        self._include = include
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; returns what may be shown. After a stop string was ``found`` nothing more comes."""
        if self.found:
            return ""
        if not self._stop:
            return text
        self._held += text
        matches = [(self._held.find(word), word) for word in self._stop if word in self._held]
        if matches:
            # The stop string that is complete first wins; of those that end together, the one that starts first.
            position, word = min(matches, key=lambda match: (match[0] + len(match[1]), match[0]))
            self.found = True
            shown, self._held = self._held[: position + len(word) if self._include else position], ""
            return shown
        keep = max(self._overlap(word) for word in self._stop)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back in vain. Call once, after the last text."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, word: str) -> int:
        """Length of the longest end of the held text that begins ``word``."""
        for size in range(min(len(word) - 1, len(self._held)), 0, -1):
            if self._held.endswith(word[:size]):
                return size
        return 0
