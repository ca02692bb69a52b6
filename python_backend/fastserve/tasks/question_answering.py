"""Extractive question answering: the piece of a context that answers a question, as the pipeline of transformers 4 found it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.errors import ManifestError
from fastserve.manifest import ModelManifest
from fastserve.tasks.answer_spans import Answer, best_spans, context_probabilities, merge_answers, whole_words
from fastserve.tasks.answer_tensors import by_text, finite, json_tensor, string_tensor
from fastserve.tasks.encoding_parameters import DEADLINE_PARAMETER, read_parameters
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.sampling_parameters import Parameter, read_truth, whole_number
from fastserve.text.tokenizer import Tokenizer
from fastserve.text.windows import Window

MOST_ANSWERS = 100

QUESTION_ANSWERING_PARAMETERS = {
    **DEADLINE_PARAMETER,
    "top_k": Parameter(whole_number(1, MOST_ANSWERS), f"a whole number from 1 to {MOST_ANSWERS}", 1),
    "max_answer_length": Parameter(whole_number(1), "a whole number of tokens, at least 1", 15),
    "handle_impossible_answer": Parameter(read_truth, "true or false", False),
}


class QuestionAnswering:
    """The question-answering task of one model. A long context is cut into windows; each proposes its best spans, grown to
    whole words, and spans that read the same are one answer with the sum of their scores."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not that of a model with start and end logits for each token."""
        self._sequences = SequenceMaker(
            manifest, tokenizer, fields=("question", "context"), default_deadline_ms=default_deadline_ms
        )
        if self._sequences.spec.output != "token":
            raise ManifestError(f"encoder.output: got {self._sequences.spec.output!r}, allowed: token, to find spans")
        cls = manifest.tokenizer.special_tokens.get("cls_token") if manifest.tokenizer is not None else None
        self._cls_id = tokenizer.token_id(cls) if cls is not None else None

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field, also for a question that leaves its context no room."""
        parameters = read_parameters(item.parameters, QUESTION_ANSWERING_PARAMETERS)
        questions, contexts = required_texts(item, "question"), required_texts(item, "context")
        documents = self._sequences.windows(questions, contexts, truncation=False)
        request = self._sequences.request_windows(request_id, documents, now, parameters)
        return PreparedEncoding(request, functools.partial(self._answer, contexts, documents, parameters))

    def _answer(
        self,
        contexts: Sequence[str],
        documents: Sequence[Sequence[Window]],
        parameters: Mapping[str, Any],
        outputs: Sequence[FloatArray],
    ) -> Tensors:
        """``outputs``: [num_tokens, 2] for each window, document by document: the logits to start and to end the answer."""
        rows = [
            self._best(context, windows, logits, parameters)
            for context, windows, logits in zip(contexts, documents, by_text(outputs, map(len, documents)), strict=True)
        ]
        return {
            "answer": string_tensor([[row[0].text] for row in rows]),
            "score": np.array([[row[0].score] for row in rows], np.float32),
            "start": np.array([[row[0].start] for row in rows], np.int32),
            "end": np.array([[row[0].end] for row in rows], np.int32),
            "result": json_tensor([[_as_pipeline(answer) for answer in row] for row in rows]),
        }

    def _best(
        self, context: str, windows: Sequence[Window], outputs: Sequence[FloatArray], parameters: Mapping[str, Any]
    ) -> list[Answer]:
        """The answers of one context, best first; at least one, which is empty when the context has no token."""
        null_scores: list[float] = []
        found = merge_answers(
            answer
            for window, logits in zip(windows, outputs, strict=True)
            for answer in self._proposals(context, window, logits, parameters, null_scores)
        )
        if parameters["handle_impossible_answer"]:
            found.append(Answer("", min(null_scores), 0, 0))  # no window has the answer: as unlikely as it is in the worst
        found.sort(key=lambda answer: answer.score, reverse=True)
        return found[: parameters["top_k"]] or [Answer("", 0.0, 0, 0)]

    def _proposals(
        self,
        context: str,
        window: Window,
        logits: FloatArray,
        parameters: Mapping[str, Any],
        null_scores: list[float],
    ) -> Iterator[Answer]:
        """The best spans of one window; its score of no answer is added to ``null_scores``."""
        first, last = window.run(1)
        with_cls = self._cls_id is not None and window.token_ids[0] == self._cls_id
        probabilities, null_score = context_probabilities(logits, slice(first, last), with_first_token=with_cls)
        null_scores.append(null_score)
        # More than are wanted, because some will turn out to read the same; the number is the pipeline's.
        spans = best_spans(finite(probabilities), 2 * parameters["top_k"] + 10, parameters["max_answer_length"])
        offsets, word_ids = window.offsets[first:last], window.word_ids[first:last]
        for span in zip(spans.starts.tolist(), spans.ends.tolist(), spans.scores.tolist(), strict=True):
            start, end = whole_words(offsets, word_ids, span[0], span[1])
            yield Answer(context[start:end], span[2], start, end)


def _as_pipeline(answer: Answer) -> dict[str, Any]:
    return {"answer": answer.text, "score": answer.score, "start": answer.start, "end": answer.end}
