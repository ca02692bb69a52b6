"""Words in a text, and which token speaks for each of them."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]
"""Characters of a text, end exclusive."""


def joined(words: Sequence[str]) -> tuple[str, list[Span]]:
    """The words with a blank between them, and where each stands."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), spans


def first_tokens(words: Sequence[Span], tokens: Sequence[Span]) -> list[int | None]:
    """For each word the index of the first token that has characters of it; None when the tokenizer dropped the word.

    Both in the order of the text. A token that reaches over several words belongs to the first; an empty one to none.
    """
    found: list[int | None] = [None] * len(words)
    word = 0
    for index, (start, end) in enumerate(tokens):
        if start >= end:
            continue
        while word < len(words) and words[word][1] <= start:
            word += 1
        if word < len(words) and words[word][0] < end and found[word] is None:
            found[word] = index
    return found
