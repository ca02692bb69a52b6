"""Text classification: labels with scores for a text or a pair of texts, as the transformers pipeline gives them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.errors import ManifestError
from fastserve.manifest import EncoderSpec, ModelManifest
from fastserve.tasks.answer_tensors import json_tensor, mean_of_windows, sigmoid, softmax, string_tensor
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, choice, read_parameters
from fastserve.tasks.encoding_task import (
    EncodingInput,
    FloatArray,
    PreparedEncoding,
    SequenceMaker,
    Tensors,
    optional_texts,
    required_texts,
)
from fastserve.tasks.sampling_parameters import Parameter, whole_number
from fastserve.text.tokenizer import Tokenizer

SCORE_FUNCTIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}
"""From the logits [n] of a text to the scores of its labels."""

CLASSIFICATION_PARAMETERS = {
    **WINDOW_PARAMETERS,
    "top_k": Parameter(whole_number(1), "a whole number, at least 1", None),
    "function_to_apply": Parameter(choice(*SCORE_FUNCTIONS), " or ".join(SCORE_FUNCTIONS), None),
}


class ScoredLabels:
    """The answer of a classifier with named labels, whatever its sequences were made of. Thread-safe."""

    def __init__(self, spec: EncoderSpec) -> None:
        """Raises ManifestError when the model is no classifier of sequences."""
        check_classifier(spec, 1)
        self._labels = spec.labels
        self._function = default_function(spec)

    def tensors(self, logits: Sequence[FloatArray], parameters: Mapping[str, Any]) -> Tensors:
        """``logits``: [num_labels] for each row of the request; ``parameters``: of :data:`CLASSIFICATION_PARAMETERS`."""
        scores = SCORE_FUNCTIONS[parameters["function_to_apply"] or self._function](np.stack(logits))  # [B, num_labels]
        ranked = [self._ranked(row) for row in scores.tolist()]
        return {
            "label": string_tensor([[row[0]["label"]] for row in ranked]),
            "score": scores.max(axis=-1, keepdims=True),
            "scores": scores,
            "result": json_tensor([row[: parameters["top_k"]] for row in ranked]),
        }

    def _ranked(self, scores: Sequence[float]) -> list[dict[str, Any]]:
        """Best first; of equals, the first label first."""
        named = [{"label": label, "score": score} for label, score in zip(self._labels, scores, strict=True)]
        named.sort(key=lambda item: item["score"], reverse=True)  # type: ignore[arg-type, return-value]
        return named


def check_classifier(spec: EncoderSpec, fewest: int, most: float = math.inf) -> None:
    """Raises ManifestError when the model is no classifier of sequences with ``fewest`` to ``most`` labels."""
    if spec.output != "sequence":
        raise ManifestError(f"encoder.output: got {spec.output!r}, allowed: sequence, to classify texts")
    if not fewest <= len(spec.labels) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} or more"
        raise ManifestError(f"encoder.labels: got {len(spec.labels)} of them, allowed: {wanted}, a name for each column")


def default_function(spec: EncoderSpec) -> str:
    """Name of the score function of a model, as the transformers pipeline decides it."""
    if spec.problem_type == "regression":
        return "none"
    return "sigmoid" if spec.problem_type == "multi_label" or len(spec.labels) == 1 else "softmax"


class TextClassification:
    """The text-classification task of one model: ``text_input`` alone or with ``text_pair``. A long text, or the second of
    a pair, is cut into windows, whose logits are averaged."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not a classifier's."""
        self._sequences = SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
        self._labels = ScoredLabels(self._sequences.spec)

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, CLASSIFICATION_PARAMETERS)
        texts, pairs = required_texts(item, "text_input"), optional_texts(item, "text_pair")
        documents = self._sequences.windows(texts, pairs, truncation=parameters["truncation"])
        request = self._sequences.request_windows(request_id, documents, now, parameters)
        return PreparedEncoding(request, functools.partial(self._answer, list(map(len, documents)), parameters))

    def _answer(self, counts: Sequence[int], parameters: Mapping[str, Any], outputs: Sequence[FloatArray]) -> Tensors:
        return self._labels.tensors(mean_of_windows(outputs, counts), parameters)
