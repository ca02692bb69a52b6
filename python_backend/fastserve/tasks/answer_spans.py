"""Answers from start and end logits, as the question-answering pipeline of transformers 4 read them (``decode_spans``,
``select_starts_ends`` and ``postprocess`` of its version 4.57).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A piece of the context: ``context[start:end]``, characters, end exclusive. Empty: there is no answer in it."""

    text: str
    score: float
    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Spans:
    """Token spans, best first; of equal ones the earlier and shorter first. Arrays [num_spans]; ``ends`` inclusive."""

    starts: IndexArray
    ends: IndexArray
    scores: FloatArray


def context_probabilities(logits: FloatArray, context: slice, *, with_first_token: bool) -> tuple[FloatArray, float]:
    """Probability of each context token to start and to end the answer [num_context, 2], and the score of no answer.

    ``logits``: [num_tokens, 2] of one window. ``with_first_token``: the window begins with the token that stands for "no
    answer" (CLS), which then competes with the context's; else there is no such score (0).
    """
    rows = np.concatenate([logits[:1] if with_first_token else logits[:0], logits[context]])
    if not len(rows):
        return rows, 0.0
    powers = np.exp(rows - rows.max(axis=0))
    probabilities: FloatArray = powers / powers.sum(axis=0)
    if not with_first_token:
        return probabilities, 0.0
    return probabilities[1:], float(probabilities[0, 0] * probabilities[0, 1])


def best_spans(probabilities: FloatArray, count: int, max_length: int) -> Spans:
    """The ``count`` spans of at most ``max_length`` tokens with the highest start * end; all of them if there are fewer.

    ``probabilities``: [num_tokens, 2]. Of the starts, only the ``count`` whose best span is best can have a span among
    the wanted ones, so the work is num_tokens * log(max_length) + count * max_length.
    """
    start, end = probabilities[:, 0], probabilities[:, 1]
    width = min(max_length, len(start))
    starts = np.argsort(-start * _highest_ahead(end, width), kind="stable")[:count]  # [num_starts]
    ends = starts[:, None] + np.arange(width)  # [num_starts, width]
    inside = ends < len(end)
    starts, ends = np.broadcast_to(starts[:, None], ends.shape)[inside], ends[inside]  # [num_candidates]
    scores = start[starts] * end[ends]
    if count < len(scores):
        likely = scores >= np.partition(scores, -count)[-count]
        starts, ends, scores = starts[likely], ends[likely], scores[likely]
    order = np.lexsort((ends, starts, -scores))[:count]
    return Spans(starts[order], ends[order], scores[order])


def _highest_ahead(values: FloatArray, width: int) -> FloatArray:
    """For each i the maximum of values[i : i + width]; the windows double in each round."""
    highest, reach = values.copy(), 1
    while reach < width:
        step = min(reach, width - reach)
        highest[:-step] = np.maximum(highest[:-step], highest[step:])
        reach += step
    return highest


def whole_words(offsets: Sequence[tuple[int, int]], word_ids: Sequence[int | None], first: int, last: int) -> tuple[int, int]:
    """Characters of the span of tokens ``first`` to ``last`` (inclusive), grown to the words it touches as far as this
    window shows them. Tokens without a word (a special token in the text) stand for themselves, and so does the span."""
    if word_ids[first] is None or word_ids[last] is None:
        return offsets[first][0], offsets[last][1]
    while first > 0 and word_ids[first - 1] == word_ids[first]:
        first -= 1
    while last + 1 < len(word_ids) and word_ids[last + 1] == word_ids[last]:
        last += 1
    return offsets[first][0], offsets[last][1]


def merge_answers(answers: Iterable[Answer]) -> list[Answer]:
    """Answers that read the same (upper and lower case alike) become one: the first, with the sum of their scores."""
    merged: dict[str, Answer] = {}
    for answer in answers:
        key = answer.text.lower()
        known = merged.get(key)
        merged[key] = answer if known is None else dataclasses.replace(known, score=known.score + answer.score)
    return list(merged.values())
