"""Extractive question answering with a transformers model, as the pipeline of transformers 4 did it (it is gone from 5).

Written from that pipeline's documented behaviour: the context in windows that overlap, softmax over context tokens and CLS,
spans of at most ``max_answer_length`` tokens grown to whole words, equal answers of all windows added up, and the least
probable "no answer" of all windows as the null answer's score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastserve.errors import InvalidRequest

_MORE_CANDIDATES = 10
"""Spans looked at beside twice the answers wanted, because some will read the same."""

Probabilities = npt.NDArray[np.float64]


@dataclasses.dataclass(slots=True)
class SourceAnswer:
    """``context[start:end]``; empty when there is no answer."""

    answer: str
    score: float
    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Windows:
    """How a model reads a context: ``length`` tokens at a time, ``stride`` of them shared with the window before; fewer beside a
    long question."""

    model: Any
    tokenizer: Any
    length: int
    stride: int


def answer_question(
    windows: Windows,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    max_answer_length: int = 15,
    handle_impossible_answer: bool = False,
) -> list[SourceAnswer]:
    """The ``top_k`` best answers, best first."""
    merged: dict[str, SourceAnswer] = {}
    null_score = 1.0
    for encoding, start, end, window_null_score in _read(windows, question, context):
        null_score = min(null_score, window_null_score)
        for first, last, score in _best_spans(start, end, 2 * top_k + _MORE_CANDIDATES, max_answer_length):
            begin, stop = _whole_words(encoding, first, last)
            text = context[begin:stop]
            known = merged.setdefault(text.lower(), SourceAnswer(text, 0.0, begin, stop))
            known.score += score
    answers = list(merged.values())
    if handle_impossible_answer:
        answers.append(SourceAnswer("", null_score, 0, 0))
    return sorted(answers, key=lambda answer: -answer.score)[:top_k]


def _read(windows: Windows, question: str, context: str) -> Iterator[tuple[Any, Probabilities, Probabilities, float]]:
    """(encoding, probability of each token [num_tokens] to start and to end the answer, of no answer) of each window."""
    tokenizer = windows.tokenizer
    num_others = len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
    room = windows.length - num_others - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise InvalidRequest("question", question, f"a question that leaves its context room in {windows.length} tokens")
    tokens = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=windows.length,
        stride=min(windows.stride, room - max(1, room // 8)),  # a window moves on by an eighth of its room at least
        return_overflowing_tokens=True,
    )
    for encoding in tokens.encodings:
        inputs = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
        with torch.inference_mode():
            found = windows.model(**{name: torch.tensor([inputs[name]]) for name in tokenizer.model_input_names})
        in_context = np.array([owner == 1 for owner in encoding.sequence_ids])
        allowed = in_context | (np.array(encoding.ids) == tokenizer.cls_token_id)
        start, end = (_probabilities(logits[0], allowed) for logits in (found.start_logits, found.end_logits))
        null_score = float(start[0] * end[0])
        yield encoding, np.where(in_context, start, 0), np.where(in_context, end, 0), null_score


def _probabilities(logits: torch.Tensor, allowed: npt.NDArray[np.bool_]) -> Probabilities:
    rows = np.where(allowed, logits.double().numpy(), -np.inf)
    powers = np.exp(rows - rows.max())
    probabilities: Probabilities = powers / powers.sum()
    return probabilities


def _best_spans(start: Probabilities, end: Probabilities, count: int, longest: int) -> list[tuple[int, int, float]]:
    """(first token, last token, score) of the ``count`` best spans."""
    scores = np.tril(np.triu(np.outer(start, end)), longest - 1)  # [num_tokens, num_tokens]
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    spans = [(int(index) // len(end), int(index) % len(end)) for index in order]
    return [(first, last, float(scores[first, last])) for first, last in spans if scores[first, last] > 0]


def _whole_words(encoding: Any, first: int, last: int) -> tuple[int, int]:
    """Characters of the words that the tokens touch."""
    first_word, last_word = encoding.token_to_word(first), encoding.token_to_word(last)
    if first_word is None or last_word is None:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    return encoding.word_to_chars(first_word, 1)[0], encoding.word_to_chars(last_word, 1)[1]
