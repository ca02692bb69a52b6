"""What each encoder task needs of a model: its head, and which rows of the last hidden state the head reads."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from fastserve.errors import UnsupportedModel


class Rows(enum.Enum):
    """What is left of the last hidden state [num_tokens, hidden_size] for the head."""

    ALL = "all"
    FIRST = "cls"
    """The first row of each sequence."""
    MEAN = "mean"
    """The mean of each sequence."""
    MARKED = "marked"
    """The rows of ``logits_rows``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """``families``: model_type -> class(es). ``output``: as ``EncoderSpec.output``. ``rows``: None if the model's configuration
    or the user decides. ``names_labels``: whether the output has a column for each label of the configuration."""

    auto_class: Any
    families: Mapping[str, Any]
    output: str
    rows: Rows | None
    names_labels: bool

    @property
    def output_name(self) -> str:
        return "embeddings" if self.auto_class is transformers.AutoModel else "logits"

    def class_names(self) -> set[str]:
        """The transformers classes that have this head."""
        return {name for names in self.families.values() for name in ([names] if isinstance(names, str) else names)}


_SEQUENCE_CLASSIFIER = Head(
    transformers.AutoModelForSequenceClassification,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    output="sequence",
    rows=None,
    names_labels=True,
)

HEADS: dict[str, Head] = {
    "text-classification": _SEQUENCE_CLASSIFIER,
    "relation-extraction": _SEQUENCE_CLASSIFIER,
    "reranking": _SEQUENCE_CLASSIFIER,
    "zero-shot-classification": _SEQUENCE_CLASSIFIER,
    "token-classification": Head(
        transformers.AutoModelForTokenClassification,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        output="token",
        rows=Rows.ALL,
        names_labels=True,
    ),
    "question-answering": Head(
        transformers.AutoModelForQuestionAnswering,
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        output="token",
        rows=Rows.ALL,
        names_labels=False,
    ),
    "fill-mask": Head(
        transformers.AutoModelForMaskedLM,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        output="row",
        rows=Rows.MARKED,
        names_labels=False,
    ),
    "feature-extraction": Head(
        transformers.AutoModel, modeling_auto.MODEL_MAPPING_NAMES, output="sequence", rows=None, names_labels=False
    ),
}
"""By task."""

_CLASSIFIER_POOLING = {"cls": Rows.FIRST, "bos": Rows.FIRST, "mean": Rows.MEAN}
"""Values of the configuration's ``classifier_pooling``."""


def rows_read(head: Head, config: Any, pooling: str | None) -> Rows:
    """What the head reads. ``pooling``: of embeddings, "mean" or "cls". Raises UnsupportedModel."""
    if head.rows is not None:
        return head.rows
    if pooling is not None:
        return Rows(pooling)
    kind = getattr(config, "classifier_pooling", None) or "cls"
    if kind not in _CLASSIFIER_POOLING:
        raise UnsupportedModel(
            f"{config.model_type}: classifier_pooling={kind} cannot be represented, only {', '.join(_CLASSIFIER_POOLING)}"
        )
    return _CLASSIFIER_POOLING[kind]
