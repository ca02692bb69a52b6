"""Feature extraction: one embedding for a text of any length."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.errors import ManifestError
from fastserve.manifest import ModelManifest
from fastserve.tasks.answer_tensors import by_text, finite
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, read_parameters
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.sampling_parameters import Parameter, read_truth
from fastserve.text.tokenizer import Tokenizer

FEATURE_EXTRACTION_PARAMETERS = {**WINDOW_PARAMETERS, "normalize": Parameter(read_truth, "true or false", None)}

SHORTEST = 1e-12
"""An embedding shorter than this is divided by it: the zero vector has no direction (torch.nn.functional.normalize)."""


class FeatureExtraction:
    """The feature-extraction task of one model, whose graph pools. The windows of a long text count by the tokens they show
    of it."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not that of a model that gives one embedding for a sequence."""
        self._sequences = SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
        if self._sequences.spec.output != "sequence":
            raise ManifestError(f"encoder.output: got {self._sequences.spec.output!r}, allowed: sequence, pooled by the graph")

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, FEATURE_EXTRACTION_PARAMETERS)
        documents = self._sequences.windows(required_texts(item, "text_input"), truncation=parameters["truncation"])
        weights = [[window.sequence_ids.count(0) for window in windows] for windows in documents]
        request = self._sequences.request_windows(request_id, documents, now, parameters)
        return PreparedEncoding(request, functools.partial(self._answer, weights, parameters))

    def _answer(self, weights: Sequence[Sequence[int]], parameters: Mapping[str, Any], outputs: Sequence[FloatArray]) -> Tensors:
        """``outputs``: [n] for each window, text by text; ``weights``: the tokens of its text in each window."""
        rows = [
            windows[0] if len(windows) == 1 else np.average(np.stack(windows), axis=0, weights=counts)
            for counts, windows in zip(weights, by_text(outputs, map(len, weights)), strict=True)
        ]
        embeddings = finite(np.stack(rows).astype(np.float32, copy=False))  # [B, n]
        if self._sequences.spec.normalize if parameters["normalize"] is None else parameters["normalize"]:
            embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), np.float32(SHORTEST))
        return {"embedding": embeddings}
