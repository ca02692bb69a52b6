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


def answer_scores(answer: str, right: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) with the right answer that fits best: 1 or 0, and the overlap of the words from 0 to 1.

    ``right``: all right answers. Those of which nothing is left do not count, as in the official script.
    """
    words = normalised(answer).split()
    judged = [text.split() for text in map(normalised, right) if text] or [[]]
    return float(words in judged), max(_f1(words, text) for text in judged)


def _f1(words: Sequence[str], right: Sequence[str]) -> float:
    if not words or not right:
        return float(words == right)
    shared = sum((collections.Counter(words) & collections.Counter(right)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(right)
    return 2 * precision * recall / (precision + recall)
