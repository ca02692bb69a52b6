"""Real sentences to measure with, without shipping any: a file the user names, else the prose of Python's own manual."""

from __future__ import annotations

import random
import re
from pathlib import Path

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def load_sentences(file: Path | None, count: int, seed: int = 0) -> list[str]:
    """``count`` sentences in random order. ``file``: text with one sentence a line, or CoNLL (a token and its tags a line,
    blank lines between sentences); None: the reference manual that comes with every Python (``pydoc_data.topics``)."""
    if file is None:
        found = _manual_sentences()
    else:
        text = file.read_text(encoding="utf-8")
        is_conll = sum("\t" in line or line.count(" ") in (1, 3) for line in text.splitlines()[:200]) > 100
        found = _conll_sentences(text) if is_conll else [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise SystemExit(f"{file}: no sentences in it")
    random.Random(seed).shuffle(found)
    return [found[index % len(found)] for index in range(count)]


def _manual_sentences() -> list[str]:
    from pydoc_data.topics import topics  # type: ignore[import-untyped]

    paragraphs = [part for text in topics.values() for part in text.split("\n\n") if not part.startswith("   ")]
    sentences = [" ".join(piece.split()) for part in paragraphs for piece in _SENTENCE_END.split(part)]
    return sorted({sentence for sentence in sentences if len(sentence.split()) > 2 and sentence[0].isalpha()})


def _conll_sentences(text: str) -> list[str]:
    blocks = re.split(r"\n\s*\n", text)
    return [" ".join(line.split()[0] for line in block.splitlines() if line.split()) for block in blocks if block.strip()]
