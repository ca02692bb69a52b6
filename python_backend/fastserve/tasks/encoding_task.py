"""What the tasks of encoders have in common: what comes in, what goes out, and the way from texts to sequences.

A task turns a client's texts into sequences (``prepare``, on the thread that received them) and the rows that the engine
computed for them into output tensors (``answer``, on the thread that responds).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.errors import InvalidRequest, ManifestError
from fastserve.manifest import EncoderSpec, ModelManifest
from fastserve.text.tokenizer import Tokenizer
from fastserve.text.windows import LONGEST, SECOND, Window, WindowLimits

FloatArray = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class EncodingInput:
    """What one client sent: B rows (the batch dimension of its tensors), typed but not yet understood."""

    texts: Mapping[str, Sequence[str]]
    """By input name: B texts; of an input with a list of n texts for each row, B * n, row by row."""
    spans: Mapping[str, Sequence[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    """By input name: B pairs of characters [start, end)."""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Triton's request parameters; numbers and truth values may be strings."""


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedEncoding:
    """A request for the engine and what turns its rows into the answer."""

    request: EncodingRequest
    answer: Callable[[Sequence[FloatArray]], Tensors]
    """From the output of each sequence of the request, in order, to output tensors with leading dimension B. May raise a
    FastServeError."""


class EncodingTask(Protocol):
    """One task of one model. Thread-safe."""

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """``now``: seconds on the engine's clock. Raises InvalidRequest naming the field."""
        ...


TASKS = {
    "text-classification": ("text_classification", "TextClassification"),
    "token-classification": ("token_classification", "TokenClassification"),
    "relation-extraction": ("relation_extraction", "RelationExtraction"),
    "question-answering": ("question_answering", "QuestionAnswering"),
    "feature-extraction": ("feature_extraction", "FeatureExtraction"),
    "fill-mask": ("fill_mask", "FillMask"),
    "reranking": ("reranking", "Reranking"),
    "zero-shot-classification": ("zero_shot_classification", "ZeroShotClassification"),
}
"""Module and class of each of ``fastserve.config.ENCODER_TASKS``."""


def make_task(manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> EncodingTask:
    """The task of ``manifest.task``. Raises ManifestError when the manifest lacks what the task needs."""
    if manifest.task not in TASKS:
        raise ManifestError(f"task: got {manifest.task!r}, allowed: {', '.join(TASKS)}")
    module, name = TASKS[manifest.task]  # imported here because the tasks import this module
    cls = getattr(importlib.import_module(f"fastserve.tasks.{module}"), name)
    task: EncodingTask = cls(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
    return task


# --- what a client sent -----------------------------------------------------------------------------------------------


def required_texts(item: EncodingInput, field: str) -> Sequence[str]:
    """The B texts of an input; raises InvalidRequest when it is missing or one of them is empty."""
    texts = optional_texts(item, field)
    if not texts:
        raise InvalidRequest(field, None, "a text for each row")
    return texts


def optional_texts(item: EncodingInput, field: str) -> Sequence[str] | None:
    """The B texts of an input, or None without it; raises InvalidRequest when one of them is empty."""
    texts = item.texts.get(field)
    if texts is not None and not all(texts):
        raise InvalidRequest(field, "", "a text that is not empty")
    return texts


# --- texts to sequences -----------------------------------------------------------------------------------------------


class SequenceMaker:
    """Makes windows of texts, and of windows the request to the engine, for one model. Thread-safe."""

    def __init__(
        self,
        manifest: ModelManifest,
        tokenizer: Tokenizer,
        *,
        fields: tuple[str, str] = ("text_input", "text_pair"),
        default_deadline_ms: int = 0,
    ) -> None:
        """``fields``: what a client calls the first and the second text of a pair. Raises ManifestError when the manifest is
        not an encoder's."""
        if manifest.encoder is None or "encoder" not in manifest.graphs:
            raise ManifestError(f"encoder: missing in the manifest of a {manifest.task} model; export the model again")
        self.spec: EncoderSpec = manifest.encoder
        self.tokenizer = tokenizer
        self._fields = fields
        special = tokenizer.num_special_tokens(pair=True)
        if self.spec.max_length < special + 2:
            raise ManifestError(f"encoder.max_length: got {self.spec.max_length}, allowed: {special + 2} or more")
        self._default_deadline_ms = default_deadline_ms
        self._takes_types = any(tensor.name == "token_type_ids" for tensor in manifest.graphs["encoder"].inputs)
        # A tokenizer may have more ids than the model has rows.
        self._vocab_size = manifest.model.vocab_size if tokenizer.size > manifest.model.vocab_size else None

    def limits(self, truncation: bool, cut: str | None = None) -> WindowLimits:
        """The model's own; the parameters are those of :class:`WindowLimits`. Of a pair, the second text is cut into windows, and
        the longer one truncated, unless ``cut`` says otherwise."""
        cut = cut or (LONGEST if truncation else SECOND)
        return WindowLimits(self.spec.max_length, self.spec.stride, truncation, cut, self._fields)

    def windows(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, truncation: bool, cut: str | None = None
    ) -> list[list[Window]]:
        """The windows of each text, or pair of texts; at least one. Raises RequestTooLong."""
        return self.tokenizer.windows_batch(texts, pairs, self.limits(truncation, cut))

    def sequence(self, window: Window, rows: tuple[int, ...] = ()) -> TokenSequence:
        """``rows``: the tokens whose rows are wanted, for graphs that compute only those. Raises InvalidRequest for a window
        without tokens, or with one the model has no row for."""
        if not window.token_ids:
            raise InvalidRequest(self._fields[0], "", "a text that gives at least one token")
        if self._vocab_size is not None and max(window.token_ids) >= self._vocab_size:
            raise self._unknown_token(window, self._vocab_size)
        types = window.token_type_ids if self._takes_types and any(window.token_type_ids) else ()
        return TokenSequence(window.token_ids, types, rows)

    def _unknown_token(self, window: Window, vocab_size: int) -> InvalidRequest:
        token_id = max(window.token_ids)
        field = self._fields[window.sequence_ids[window.token_ids.index(token_id)] or 0]
        return InvalidRequest(field, f"a word of token id {token_id}", f"words whose token ids are below {vocab_size}")

    def request_windows(
        self, request_id: int, documents: Iterable[Iterable[Window]], now: float, parameters: Mapping[str, Any]
    ) -> EncodingRequest:
        """The request for all the windows of ``documents``, in order. Raises InvalidRequest as :meth:`sequence` does."""
        return self.request(request_id, [self.sequence(window) for windows in documents for window in windows], now, parameters)

    def request(
        self, request_id: int, sequences: Iterable[TokenSequence], now: float, parameters: Mapping[str, Any]
    ) -> EncodingRequest:
        """``parameters``: as ``read_parameters`` gave them; ``deadline_ms`` counts from ``now``."""
        deadline_ms = parameters["deadline_ms"] or self._default_deadline_ms
        return EncodingRequest(request_id, tuple(sequences), now + deadline_ms / 1000 if deadline_ms else None)
