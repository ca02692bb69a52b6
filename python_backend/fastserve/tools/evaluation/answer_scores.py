"""Exact match and F1 of an answer, as SQuAD defines them (Rajpurkar et al. 2016 and 2018).

Texts are compared in lower case, without ASCII punctuation, without the articles a, an and the, and with single blanks. A
question without an answer is answered right by the empty text only.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 or 0; ``right``: all right answers."""
    return float(any(normalised(answer) == normalised(text) for text in _judged(right)))


def f1(answer: str, right: Sequence[str]) -> float:
    """Overlap of the words, from 0 to 1, with the right answer that fits best."""
    return max(_f1(normalised(answer).split(), normalised(text).split()) for text in _judged(right))


def _judged(right: Sequence[str]) -> Sequence[str]:
    """Answers of which nothing is left do not count, as in the official script."""
    return [text for text in right if normalised(text)] or [""]


def _f1(words: Sequence[str], right: Sequence[str]) -> float:
    if not words or not right:
        return float(words == right)
    shared = sum((collections.Counter(words) & collections.Counter(right)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(right)
    return 2 * precision * recall / (precision + recall)
