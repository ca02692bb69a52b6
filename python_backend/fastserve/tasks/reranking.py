"""Reranking: one score for each pair of a query and a document, from a model with a single label."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fastserve.manifest import ModelManifest
from fastserve.tasks.answer_tensors import json_tensor
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, choice, read_parameters
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.sampling_parameters import Parameter
from fastserve.tasks.text_classification import SCORE_FUNCTIONS, check_classifier, default_function
from fastserve.text.tokenizer import Tokenizer

RERANKING_PARAMETERS = {**WINDOW_PARAMETERS, "function_to_apply": Parameter(choice("sigmoid", "none"), "sigmoid or none", None)}


class Reranking:
    """The reranking task of one model: ``text_input`` is the query, ``text_pair`` the document. A long document is cut into
    windows, and its best window counts."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not that of a model with one label."""
        self._sequences = SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
        check_classifier(self._sequences.spec, 1, 1)
        self._function = default_function(self._sequences.spec)

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, RERANKING_PARAMETERS)
        texts, pairs = required_texts(item, "text_input"), required_texts(item, "text_pair")
        documents = self._sequences.windows(texts, pairs, truncation=parameters["truncation"])
        function = parameters["function_to_apply"] or self._function
        request = self._sequences.request_windows(request_id, documents, now, parameters)
        return PreparedEncoding(request, functools.partial(_answer, list(map(len, documents)), function))


def _answer(counts: Sequence[int], function: str, outputs: Sequence[FloatArray]) -> Tensors:
    """``outputs``: the logit [1] of each window, document by document; ``counts``: windows of each document."""
    starts = np.cumsum([0, *counts[:-1]])
    logits = np.maximum.reduceat(np.concatenate(outputs), starts)  # [B]
    scores = SCORE_FUNCTIONS[function](logits[:, None])  # [B, 1]
    return {"score": scores, "result": json_tensor([{"score": score} for (score,) in scores.tolist()])}
