"""Zero-shot classification: labels of the client's own, each put to a model of natural language inference as a hypothesis
about the text, as the transformers pipeline does it."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastserve.errors import InvalidRequest
from fastserve.manifest import ModelManifest
from fastserve.tasks.answer_tensors import json_tensor, mean_of_windows, softmax, string_tensor
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, read_parameters, text_list
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.sampling_parameters import Parameter, read_truth
from fastserve.tasks.text_classification import check_classifier
from fastserve.text.tokenizer import Tokenizer
from fastserve.text.windows import FIRST

LABELS_ALLOWED = "labels with commas between them, or a JSON list of labels that are not empty"
MOST_CHARACTERS = 4_000_000
"""In all pairs of a request: each label brings the whole text with it, and each field of the template the label."""
TEMPLATE_ALLOWED = "a text with {} where the label is to stand; {{ and }} for braces"


def _template(value: Any) -> str:
    """Only plain fields: a width or an attribute in a template would let a client have megabytes made, or look around."""
    if not isinstance(value, str):
        raise ValueError
    fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(value) if name is not None]
    if len(fields) != 1 and any(name != "0" for name, *_ in fields):
        raise ValueError
    if not fields or any(name not in ("", "0") or spec or conversion for name, spec, conversion in fields):
        raise ValueError
    return value


ZERO_SHOT_PARAMETERS = {
    **WINDOW_PARAMETERS,
    "candidate_labels": Parameter(text_list(commas=True), LABELS_ALLOWED, None),
    "hypothesis_template": Parameter(_template, TEMPLATE_ALLOWED, "This example is {}."),
    "multi_label": Parameter(read_truth, "true or false", False),
}


class ZeroShotClassification:
    """The zero-shot-classification task of one model. A long ``text_input`` is cut into windows, each with the whole
    hypothesis; their logits are averaged."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not that of a classifier with two labels or more."""
        fields = ("text_input", "candidate_labels")
        self._sequences = SequenceMaker(manifest, tokenizer, fields=fields, default_deadline_ms=default_deadline_ms)
        check_classifier(self._sequences.spec, 2)
        labels = self._sequences.spec.labels
        # The last label when none is named for entailment, and the first or last one for its contrary: as the pipeline has it.
        self._entailment = next((index for index, label in enumerate(labels) if label.lower().startswith("entail")), -1)
        self._contradiction = -1 if self._entailment == 0 else 0

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, ZERO_SHOT_PARAMETERS)
        texts = required_texts(item, "text_input")
        labels = _labels(item, parameters["candidate_labels"], len(texts))
        _check_size(texts, labels, parameters["hypothesis_template"])
        hypotheses = [parameters["hypothesis_template"].format(label) for row in labels for label in row]
        premises = [text for text, row in zip(texts, labels, strict=True) for _ in row]
        documents = self._sequences.windows(premises, hypotheses, truncation=parameters["truncation"], cut=FIRST)
        request = self._sequences.request_windows(request_id, documents, now, parameters)
        answer = functools.partial(self._answer, texts, labels, list(map(len, documents)), parameters["multi_label"])
        return PreparedEncoding(request, answer)

    def _answer(
        self,
        texts: Sequence[str],
        labels: Sequence[Sequence[str]],
        counts: Sequence[int],
        multi_label: bool,
        outputs: Sequence[FloatArray],
    ) -> Tensors:
        """``outputs``: the logits of each window, pair by pair; ``counts``: windows of each pair; ``labels``: n a text."""
        logits = np.stack(mean_of_windows(outputs, counts)).reshape(len(texts), len(labels[0]), -1)  # [B, n, model's labels]
        if multi_label or len(labels[0]) == 1:
            scores = softmax(logits[..., [self._contradiction, self._entailment]])[..., 1]  # [B, n]
        else:
            scores = softmax(logits[..., self._entailment])  # [B, n]
        order = scores.argsort(axis=-1)[:, ::-1]  # [B, n], best first; of equals, the last first
        ranked = [[row[index] for index in best] for row, best in zip(labels, order.tolist(), strict=True)]
        best_scores = np.take_along_axis(scores, order, axis=-1)
        results = zip(texts, ranked, best_scores.tolist(), strict=True)
        return {
            "label": string_tensor([row[:1] for row in ranked]),
            "score": best_scores[:, :1],
            "scores": scores,
            "result": json_tensor([{"sequence": text, "labels": names, "scores": row} for text, names, row in results]),
        }


def _check_size(texts: Sequence[str], labels: Sequence[Sequence[str]], template: str) -> None:
    """Raises InvalidRequest when texts and hypotheses would be too long together."""
    fields, pairs = template.count("}"), sum(map(len, labels))
    characters = sum(
        len(row) * (len(text) + len(template)) + fields * sum(map(len, row)) for text, row in zip(texts, labels, strict=True)
    )
    if characters > MOST_CHARACTERS:
        detail = f"fewer or shorter labels and texts: at most {MOST_CHARACTERS} characters in all pairs of text and hypothesis"
        raise InvalidRequest("candidate_labels", f"{pairs} labels, which make {characters} characters", detail)


def _labels(item: EncodingInput, parameter: Sequence[str] | None, rows: int) -> Sequence[Sequence[str]]:
    """The candidate labels of each row, the same number for all: the tensor's, else the parameter's."""
    tensor = item.texts.get("candidate_labels")
    labels: Sequence[str] = tensor if tensor is not None else parameter or ()
    if not labels or not all(labels) or (tensor is not None and len(tensor) % rows):
        raise InvalidRequest("candidate_labels", labels, LABELS_ALLOWED)
    if tensor is None:
        return [labels] * rows
    size = len(tensor) // rows
    return [labels[start : start + size] for start in range(0, len(labels), size)]
