"""Named entities from the labels of tokens: the strategies of the transformers token-classification pipeline, and IOB1,
BIOES and BILOU labels, whose ends that pipeline does not know.

Strategies: "none" gives every token; "simple" joins neighbouring tokens of one type; "first", "average" and "max" first
give every word one label: its first token's, that of the mean scores, or that of its surest token.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]

STRATEGIES = ("none", "simple", "first", "average", "max")
WORD_STRATEGIES = ("first", "average", "max")


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """One entity; with "none", one token."""

    label: str
    """Its type; with "none", the token's whole label."""
    score: float
    """Mean probability of its pieces' labels."""
    word: str
    """Its text put together from tokens, as the pipeline shows it; the text itself is ``text[start:end]``."""
    start: int
    """Characters of the text, end exclusive."""
    end: int
    index: int | None = None
    """With "none", the token's place in the sequence, special tokens counted; else None."""


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledTokens:
    """A text's tokens in order, special ones left out, and what the model thinks of each."""

    tokens: Sequence[str]
    """The vocabulary's text, with its marks of continuation."""
    offsets: Sequence[tuple[int, int]]
    """Characters of the text, end exclusive."""
    indices: Sequence[int]
    continues: Sequence[bool]
    """Whether the token goes on with the word of the one before it; read by the word strategies only."""
    probabilities: FloatArray
    """[num_tokens, num_labels]"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Pieces:
    """What the grouping joins: tokens or words, one after the other."""

    bounds: IndexArray
    """[num_pieces + 1]: first token of each, and the number of tokens."""
    labels: IndexArray
    """[num_pieces]"""
    scores: FloatArray
    """[num_pieces]"""


class EntityReader:
    """Groups labelled tokens to entities, for one set of labels. Thread-safe."""

    def __init__(self, labels: Sequence[str], join_tokens: Callable[[list[str]], str]) -> None:
        """``labels``: the name of each column. ``join_tokens``: the decoder of the tokenizer, vocabulary texts to a text."""
        self._labels = tuple(labels)
        self._join_tokens = join_tokens
        # As the pipeline shows a type: what follows the first dash, whether or not a prefix stands before it.
        self._shown = tuple(label.split("-", 1)[-1] for label in labels)
        parts = [_prefix_and_type(label, _known_prefixes(labels)) for label in labels]
        types = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in parts))}
        self._types = np.array([types[name] for _, name in parts], np.intp)
        self._begins = np.array([prefix in ("B", "S", "U") for prefix, _ in parts], bool)
        self._ends = np.array([prefix in ("E", "L", "S", "U") for prefix, _ in parts], bool)

    def read(self, tokens: LabelledTokens, strategy: str, ignore_labels: Collection[str]) -> list[Entity]:
        """The entities in the order of the text. ``ignore_labels``: types to leave out; with "none", whole labels."""
        if not len(tokens.tokens):
            return []
        pieces = _words(tokens, strategy) if strategy in WORD_STRATEGIES else _single_tokens(tokens.probabilities)
        if strategy == "none":
            return self._every_token(tokens, pieces, ignore_labels)
        firsts = self._group(pieces.labels)  # [num_groups]: first piece of each
        lasts = np.append(firsts[1:], len(pieces.labels))
        scores = np.add.reduceat(pieces.scores, firsts) / (lasts - firsts)
        found = []
        for first, last, label, score in zip(
            firsts.tolist(), lasts.tolist(), pieces.labels[firsts].tolist(), scores.tolist(), strict=True
        ):
            shown = self._shown[label]
            if shown not in ignore_labels:
                bounds = pieces.bounds[first : last + 1].tolist()
                start, end = tokens.offsets[bounds[0]][0], tokens.offsets[bounds[-1] - 1][1]
                found.append(Entity(shown, score, self._word(tokens, bounds, strategy), start, end))
        return found

    def _every_token(self, tokens: LabelledTokens, pieces: _Pieces, ignore_labels: Collection[str]) -> list[Entity]:
        rows = zip(pieces.labels.tolist(), pieces.scores.tolist(), tokens.tokens, tokens.offsets, tokens.indices, strict=True)
        return [
            Entity(self._labels[label], score, word, start, end, index)
            for label, score, word, (start, end), index in rows
            if self._labels[label] not in ignore_labels
        ]

    def _group(self, labels: IndexArray) -> IndexArray:
        """First piece of each run of neighbours that are one entity."""
        types = self._types[labels]
        parted = (types[1:] != types[:-1]) | self._begins[labels[1:]] | self._ends[labels[:-1]]
        return np.append(0, np.flatnonzero(parted) + 1)

    def _word(self, tokens: LabelledTokens, bounds: Sequence[int], strategy: str) -> str:
        """Words are decoded by themselves and then together, as the pipeline does it."""
        if strategy == "simple":
            return self._join_tokens(list(tokens.tokens[bounds[0] : bounds[-1]]))
        pairs = itertools.pairwise(bounds)
        return self._join_tokens([self._join_tokens(list(tokens.tokens[start:end])) for start, end in pairs])


def _known_prefixes(labels: Sequence[str]) -> str:
    """The prefixes that mean something here. E-, S-, L- and U- do when some type has labels for its begin and its end;
    otherwise such a label is a name with a dash in it, as the pipeline takes it."""
    names = set(labels)
    begun = [label[2:] for label in labels if label.startswith("B-")]
    prefixes = "BI"
    if any(f"E-{name}" in names for name in begun):
        prefixes += "ES"
    if any(f"L-{name}" in names for name in begun):
        prefixes += "LU"
    return prefixes


def _prefix_and_type(label: str, prefixes: str) -> tuple[str, str]:
    """A label without a prefix goes on with whatever is like it before."""
    if label[1:2] == "-" and label[0] in prefixes:
        return label[0], label[2:]
    return "I", label


def _single_tokens(probabilities: FloatArray) -> _Pieces:
    return _Pieces(np.arange(len(probabilities) + 1), probabilities.argmax(axis=-1), probabilities.max(axis=-1))


def _words(tokens: LabelledTokens, strategy: str) -> _Pieces:
    probabilities = tokens.probabilities
    begins = np.flatnonzero(~np.asarray(tokens.continues[1:], bool)) + 1
    bounds = np.concatenate([[0], begins, [len(probabilities)]])
    if strategy == "average":
        rows = np.add.reduceat(probabilities, bounds[:-1], axis=0)  # [num_words, num_labels]
        rows /= np.diff(bounds)[:, None]
    elif strategy == "max":
        rows = probabilities[_surest(probabilities.max(axis=-1), bounds)]
    else:
        rows = probabilities[bounds[:-1]]
    return _Pieces(bounds, rows.argmax(axis=-1), rows.max(axis=-1))


def _surest(scores: FloatArray, bounds: IndexArray) -> IndexArray:
    """For each word the first of its tokens with the highest score."""
    return np.array([start + int(scores[start:end].argmax()) for start, end in itertools.pairwise(bounds.tolist())], np.intp)
