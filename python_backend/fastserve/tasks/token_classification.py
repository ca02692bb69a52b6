"""Token classification: the named entities of a text, as the transformers pipeline gives them, in documents of any length."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.errors import ManifestError
from fastserve.manifest import ModelManifest
from fastserve.tasks.answer_tensors import by_text, finite, json_tensor, softmax
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, choice, read_parameters, text_list
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.entities import STRATEGIES, WORD_STRATEGIES, Entity, EntityReader, LabelledTokens
from fastserve.tasks.ragged_tensors import ragged_numbers, ragged_strings
from fastserve.tasks.sampling_parameters import Parameter
from fastserve.tasks.window_context import widest_context
from fastserve.text.tokenizer import Tokenizer
from fastserve.text.windows import Window

TOKEN_CLASSIFICATION_PARAMETERS = {
    **WINDOW_PARAMETERS,
    "aggregation_strategy": Parameter(choice(*STRATEGIES), ", ".join(STRATEGIES), None),
    "ignore_labels": Parameter(text_list(), 'a JSON list of labels, such as ["O"]', ("O",)),
}


class TokenClassification:
    """The token-classification task of one model. In a long text every token's label comes from the window that shows most
    of the text around it; only then are tokens joined, so that no entity is cut where a window ends."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not that of a model that labels tokens."""
        self._sequences = SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
        spec = self._sequences.spec
        if spec.output != "token":
            raise ManifestError(f"encoder.output: got {spec.output!r}, allowed: token, to label tokens")
        if not spec.labels:
            raise ManifestError("encoder.labels: got none, allowed: the name of each column of a classifier's output")
        if spec.aggregation_strategy not in STRATEGIES:
            raise ManifestError(
                f"encoder.aggregation_strategy: got {spec.aggregation_strategy!r}, allowed: {', '.join(STRATEGIES)}"
            )
        self._tokenizer = tokenizer
        self._reader = EntityReader(spec.labels, tokenizer.join_tokens)
        unknown = manifest.tokenizer.special_tokens.get("unk_token") if manifest.tokenizer is not None else None
        self._unknown_id = tokenizer.token_id(unknown) if unknown is not None else None

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, TOKEN_CLASSIFICATION_PARAMETERS)
        texts = required_texts(item, "text_input")
        documents = self._sequences.windows(texts, truncation=parameters["truncation"])
        request = self._sequences.request_windows(request_id, documents, now, parameters)
        return PreparedEncoding(request, functools.partial(self._answer, texts, documents, parameters))

    def _answer(
        self,
        texts: Sequence[str],
        documents: Sequence[Sequence[Window]],
        parameters: Mapping[str, Any],
        outputs: Sequence[FloatArray],
    ) -> Tensors:
        """``outputs``: [num_tokens, num_labels] for each window, document by document."""
        strategy = parameters["aggregation_strategy"] or self._sequences.spec.aggregation_strategy
        rows = []
        for text, windows, logits in zip(texts, documents, by_text(outputs, map(len, documents)), strict=True):
            tokens = self._labelled(text, windows, logits, words=strategy in WORD_STRATEGIES)
            rows.append(self._reader.read(tokens, strategy, parameters["ignore_labels"]))
        return {
            "label": ragged_strings([[entity.label for entity in row] for row in rows]),
            "score": ragged_numbers([[entity.score for entity in row] for row in rows], 0.0, np.float32),
            "start": ragged_numbers([[entity.start for entity in row] for row in rows], -1, np.int32),
            "end": ragged_numbers([[entity.end for entity in row] for row in rows], -1, np.int32),
            "result": json_tensor([[_as_pipeline(entity) for entity in row] for row in rows]),
        }

    def _labelled(self, text: str, windows: Sequence[Window], outputs: Sequence[FloatArray], *, words: bool) -> LabelledTokens:
        """The tokens of a text, each from its best window; ``words``: find out which go on with a word."""
        shares = widest_context(windows)
        token_ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for window, share in zip(windows, shares, strict=True):
            token_ids += window.token_ids[share]
            offsets += window.offsets[share]
        logits = np.concatenate([output[share] for output, share in zip(outputs, shares, strict=True)])
        tokens = self._tokenizer.tokens(token_ids)
        continues = self._continues(text, tokens, offsets) if words else []
        for index in [index for index, token_id in enumerate(token_ids) if token_id == self._unknown_id]:
            tokens[index] = text[slice(*offsets[index])]
            if words:
                continues[index] = False
        first = windows[0].run(0)[0]
        return LabelledTokens(tokens, offsets, range(first, first + len(tokens)), continues, finite(softmax(logits)))

    def _continues(self, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether each token goes on with a word, as the pipeline guesses it: a mark makes a token longer than its text; where
        tokens have no marks, a word begins at a space."""
        if self._tokenizer.marks_continuation:
            return [len(token) != end - start for token, (start, end) in zip(tokens, offsets, strict=True)]
        return [start > 0 and " " not in text[start - 1 : start + 1] for start, _ in offsets]


def _as_pipeline(entity: Entity) -> dict[str, Any]:
    """The pipeline's dict; only single tokens have an index, and their label is called otherwise."""
    if entity.index is None:
        names = {"entity_group": entity.label, "score": entity.score}
    else:
        names = {"entity": entity.label, "score": entity.score, "index": entity.index}
    return {**names, "word": entity.word, "start": entity.start, "end": entity.end}
