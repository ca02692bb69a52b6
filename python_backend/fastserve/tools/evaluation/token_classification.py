"""Named entities: one label a word, judged by whole entities (seqeval) and tag by tag (scikit-learn)."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderRequest, Outputs, Scalar
from fastserve.tools.evaluation.evaluation_task import Difference, Report
from fastserve.tools.evaluation.word_alignment import first_tokens, joined

OUTSIDE = "O"
_EVERY_TOKEN: Mapping[str, Scalar] = {"aggregation_strategy": "none", "ignore_labels": json.dumps([])}
_DIGITS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class TaggedSentence:
    """``tags`` has one for each of ``words``."""

    place: str
    words: Sequence[str]
    tags: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class WordTags:
    """A tag and its score for each word. A word the tokenizer dropped has the tag O, the score 0, and is counted."""

    tags: tuple[str, ...]
    scores: tuple[float, ...]
    dropped: int


class TokenClassification:
    """An :class:`~fastserve.tools.evaluation.evaluation_task.EvaluationTask`.

    A sentence is sent as its words with blanks between them. A word's tag is that of its first token, as in
    transformers' run_ner.
    """

    item_name = "sentences"

    def __init__(self, sentences: Sequence[TaggedSentence], parameters: Mapping[str, Scalar]) -> None:
        self._sentences = sentences
        self._spans = [joined(sentence.words)[1] for sentence in sentences]
        self.places = [sentence.place for sentence in sentences]
        sent = {**parameters, **_EVERY_TOKEN}
        self.requests = [(EncoderRequest({"text_input": joined(sentence.words)[0]}, parameters=sent),) for sentence in sentences]

    def prediction(self, index: int, answers: Sequence[Outputs]) -> WordTags:
        (outputs,) = answers
        try:
            tokens = list(zip(*(outputs[name] for name in ("label", "score", "start", "end")), strict=True))
        except (KeyError, ValueError):
            raise RequestFailed("INTERNAL", f"not the answer of a token classifier: {sorted(outputs)}") from None
        tokens = [token for token in tokens if token[2] >= 0]  # other rows of a batch may have more
        chosen = first_tokens(self._spans[index], [(start, end) for _, _, start, end in tokens])
        return WordTags(
            tuple(OUTSIDE if token is None else str(tokens[token][0]) for token in chosen),
            tuple(0.0 if token is None else float(tokens[token][1]) for token in chosen),
            chosen.count(None),
        )

    def difference(self, one: WordTags, other: WordTags) -> Difference:
        distances = [abs(left - right) for left, right in zip(one.scores, other.scores, strict=True)]
        return Difference(one.tags != other.tags, max(distances, default=0.0))

    def is_numeric(self, predictions: Sequence[WordTags]) -> bool:
        return False

    def report(self, predictions: Sequence[WordTags]) -> Report:
        gold = [list(sentence.tags) for sentence in self._sentences]
        predicted = [list(prediction.tags) for prediction in predictions]
        entity_text, entities = _entity_report(gold, predicted)
        tag_text, tags = _tag_report(gold, predicted)
        dropped = sum(prediction.dropped for prediction in predictions)
        words = sum(map(len, gold))
        return Report(
            metrics=dict(_metrics(entities, tags)),
            texts={"Entities (seqeval)": entity_text, "Tags (scikit-learn)": tag_text},
            details={"entities": entities, "tags": tags, "words": words, "dropped_words": dropped},
            notes=tuple(self._notes(gold, predicted, dropped, words)),
        )

    def _notes(self, gold: list[list[str]], predicted: list[list[str]], dropped: int, words: int) -> Iterator[str]:
        if dropped:
            yield f"{dropped} of {words} words have no token (the tokenizer drops them) and count as {OUTSIDE}."
        known, said = ({tag for tags in side for tag in tags} - {OUTSIDE} for side in (gold, predicted))
        if known and said and not known & said:
            yield (
                f"No tag of the dataset ({', '.join(sorted(known)[:5])}, ...) is one the model uses "
                f"({', '.join(sorted(said)[:5])}, ...): is it the model for this dataset, --columns the right ones?"
            )


def _metrics(entities: Mapping[str, Any], tags: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    micro, macro = entities["micro avg"], entities["macro avg"]
    yield from (("precision", micro["precision"]), ("recall", micro["recall"]), ("F1", micro["f1-score"]))
    yield from (("macro F1", macro["f1-score"]), ("accuracy of tags", tags["accuracy"]))
    yield from ((f"F1 {name}", scores["f1-score"]) for name, scores in entities.items() if not name.endswith(" avg"))


def _entity_report(gold: list[list[str]], predicted: list[list[str]]) -> tuple[str, dict[str, Any]]:
    """seqeval's report as text and as numbers; it knows IOB1, IOB2 and IOBES."""
    from seqeval.metrics import classification_report
    from seqeval.metrics.sequence_labeling import get_entities

    if not get_entities(gold) and not get_entities(predicted):
        nothing = {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0}
        return "no entities\n", {f"{kind} avg": dict(nothing) for kind in ("micro", "macro", "weighted")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tags without B- or I-: each is an entity of its own kind
        text = classification_report(gold, predicted, digits=_DIGITS, zero_division=0)
        numbers = classification_report(gold, predicted, output_dict=True, zero_division=0)
    return str(text), {
        name: {key: float(value) if key != "support" else int(value) for key, value in scores.items()}
        for name, scores in numbers.items()
    }


def _tag_report(gold: list[list[str]], predicted: list[list[str]]) -> tuple[str, dict[str, Any]]:
    """scikit-learn's report over all words, as text and as numbers."""
    from sklearn.metrics import accuracy_score, classification_report

    true, said = ([tag for tags in side for tag in tags] for side in (gold, predicted))
    text = classification_report(true, said, digits=_DIGITS, zero_division=0)
    numbers = classification_report(true, said, output_dict=True, zero_division=0)
    return str(text), {**numbers, "accuracy": float(accuracy_score(true, said))}
