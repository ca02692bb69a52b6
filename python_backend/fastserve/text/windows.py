"""Long texts as windows a model can take: each as long as the model allows, neighbours sharing some tokens.

Windows are slices of one encoding of the whole text, so a token never depends on where the text was cut. They begin and end
where the ``tokenizers`` library's own truncation with a stride would put them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import tokenizers

from fastserve.errors import RequestTooLong

FIRST, SECOND, LONGEST = "first", "second", "longest"

MOST_TOKENS = 4_000_000
"""In all the windows of a request: beside a long first text, a short second one makes many."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class WindowLimits:
    """How long windows are and which text is cut to make them. Lengths in tokens."""

    max_length: int
    """Of a whole window, special tokens and the other text included."""
    stride: int
    """Tokens of the cut text that two neighbouring windows share; fewer where a window would move on by less than an eighth."""
    truncation: bool = False
    """Only the first window; the rest of the text is dropped."""
    cut: str = SECOND
    """Of a pair: the text that is cut, "first" or "second"; the other one is whole in every window. With ``truncation`` also
    "longest": tokens are taken from the longer text until the pair fits (transformers' ``truncation=True``). A text without
    a pair is the one that is cut."""
    fields: tuple[str, str] = ("text_input", "text_pair")
    """What a client calls the two texts, for messages."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What a model reads at once: a text, a pair of texts, or a part of them, special tokens included. One entry a token."""

    token_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    """Characters [start, end) of the token's own text; (0, 0) for special tokens."""
    sequence_ids: tuple[int | None, ...]
    """0: of the first text, 1: of the second, None: a special token that is put around the texts. One that stands in a text, such
    as a mask, is of that text."""
    word_ids: tuple[int | None, ...]
    """Number of the word in its own text, as the pre-tokenizer splits it; None for special tokens."""
    first_token: int = 0
    """Index, in the cut text, of the first of its tokens that is in this window."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def run(self, sequence: int) -> tuple[int, int]:
        """[start, end) of the tokens of text 0 or 1, which lie side by side; (0, 0) when it gave no token."""
        count = self.sequence_ids.count(sequence)
        if not count:
            return 0, 0
        start = self.sequence_ids.index(sequence)
        return start, start + count

    def keep(self, run: tuple[int, int], start: int, end: int) -> Window:
        """Of the text whose tokens are ``run`` (as :meth:`run` says) only its tokens [start, end), counted from the first one
        here; all of the rest."""
        begin, stop = run

        def part(values: tuple[T, ...]) -> tuple[T, ...]:
            return values[:begin] + values[begin + start : min(begin + end, stop)] + values[stop:]

        return Window(
            part(self.token_ids),
            part(self.token_type_ids),
            part(self.offsets),
            part(self.sequence_ids),
            part(self.word_ids),
            self.first_token + start,
        )


def whole_window(encoding: tokenizers.Encoding) -> Window:
    """The window that holds everything, however long it is."""
    return Window(
        token_ids=tuple(encoding.ids),
        token_type_ids=tuple(encoding.type_ids),
        offsets=tuple(encoding.offsets),
        sequence_ids=tuple(encoding.sequence_ids),
        word_ids=tuple(encoding.word_ids),
    )


def cut_window(whole: Window, limits: WindowLimits) -> list[Window]:
    """The windows of a text or pair, in order; at least one. Raises RequestTooLong naming the text that leaves no room, or
    that makes more windows than a request may have."""
    if len(whole) <= limits.max_length:
        return [whole]
    paired = 1 in whole.sequence_ids
    if paired and limits.truncation and limits.cut == LONGEST:
        return [_fit_pair(whole, limits.max_length)]
    sequence = 1 if paired and limits.cut == SECOND else 0
    start, end = whole.run(sequence)
    room = limits.max_length - (len(whole) - (end - start))
    if room < 1:
        others = whole.sequence_ids.count(1 - sequence)
        raise RequestTooLong(
            limits.fields[1 - sequence],
            f"{others} tokens",
            f"at most {others + room - 1}, so that {limits.fields[sequence]} has room in the model's {limits.max_length}",
        )
    if limits.truncation:
        return [whole.keep((start, end), 0, room)]
    starts = window_starts(end - start, room, limits.stride)
    check_size(len(starts), len(starts) * limits.max_length, limits.fields[sequence])
    return [whole.keep((start, end), first, first + room) for first in starts]


def check_size(num_windows: int, num_tokens: int, field: str) -> None:
    """Raises RequestTooLong naming ``field`` when windows have more than :data:`MOST_TOKENS` tokens together."""
    if num_tokens > MOST_TOKENS:
        raise RequestTooLong(
            field, f"{num_windows} windows with {num_tokens} tokens", f"at most {MOST_TOKENS} tokens; send less at once"
        )


def window_starts(length: int, room: int, stride: int) -> Sequence[int]:
    """Where windows of ``room`` tokens begin in a text of ``length`` tokens. A window moves on by an eighth of its room at
    least: beside a long first text, a stride almost as long as the room would make a window of every token."""
    step = room - min(stride, room - max(1, room // 8))
    count = 1 + max(0, -(-(length - room) // step))
    return range(0, count * step, step)


def _fit_pair(whole: Window, max_length: int) -> Window:
    """Both texts cut at their ends so that the longer one loses tokens first, then both in turn."""
    lengths = [whole.sequence_ids.count(sequence) for sequence in (0, 1)]
    room = max_length - whole.sequence_ids.count(None)
    shorter = min(lengths)
    if 2 * shorter <= room:
        kept = [shorter if length == shorter else room - shorter for length in lengths]
    else:
        half = room // 2
        kept = [half, half + room % 2] if lengths[0] <= lengths[1] else [half + room % 2, half]
    shorter_second = whole.keep(whole.run(1), 0, kept[1])
    return shorter_second.keep(shorter_second.run(0), 0, kept[0])
