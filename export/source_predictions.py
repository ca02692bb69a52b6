"""What a source model itself says, run by transformers: the answers a served one is held against.

The pipelines of transformers answer where there is one. Answers have the names and forms of the encoder contract's outputs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from fastserve.errors import InvalidRequest
from fastserve.export.encoders.heads import HEADS
from fastserve.export.encoders.inputs import longest_sequence, position_offset
from fastserve.export.encoders.loading import load_encoder
from fastserve.export.encoders.settings import encoder_settings
from fastserve.export.options import ExportOptions
from fastserve.export.quiet import quiet_libraries
from fastserve.export.source import LoadedModel, Source, load_config, load_tokenizer, load_weights, resolve
from fastserve.export.source_question_answering import Windows, answer_question
from fastserve.manifest import EncoderSpec

Parameters = Mapping[str, Any]
Spans = Mapping[str, tuple[int, int]]
Outputs = dict[str, list[Any]]

TRUNCATED = "truncated"
"""Output that is there when a text was longer than the model, and so was cut off."""
_EVERYWHERE = frozenset({"truncation", "deadline_ms"})
_CLASSIFICATION = frozenset({"top_k", "function_to_apply"})
_SEED = 0
_PIPELINES = {
    "text-classification": "text-classification",
    "relation-extraction": "text-classification",
    "token-classification": "token-classification",
    "zero-shot-classification": "zero-shot-classification",
}


class SourceModel:
    """One model in memory, in float32 on the CPU, for one task. Not thread-safe.

    ``labels``: names of its outputs, for classifiers. ``notes``: what a reader must know of its answers, one sentence each.
    """

    def __init__(self, loaded: LoadedModel, task: str, spec: EncoderSpec, notes: tuple[str, ...]) -> None:
        """``spec``: what an export would say of the model."""
        self._task = task
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._tokenizer.model_max_length = spec.max_length
        self._spec = spec
        self.notes = notes
        self.labels = spec.labels
        make: Any = transformers.pipeline
        kind = _PIPELINES.get(task)
        self._pipeline: Any = make(kind, model=self._model, tokenizer=self._tokenizer, device="cpu") if kind else None

    def answer(self, texts: Mapping[str, str], spans: Spans, candidate_labels: Sequence[str], parameters: Parameters) -> Outputs:
        """One row's outputs. Raises InvalidRequest for a parameter this cannot honour."""
        known, respond = _TASKS[self._task]
        for name, value in parameters.items():
            if name not in known | _EVERYWHERE:
                raise InvalidRequest(name, value, f"with a source model to compare, {', '.join(sorted(known | _EVERYWHERE))}")
        with torch.inference_mode():
            return respond(self, texts, spans, candidate_labels, parameters)

    def _tokens(self, texts: Mapping[str, str], spans: Spans, labels: Sequence[str], parameters: Parameters) -> Outputs:
        text = texts["text_input"]
        ignored = json.loads(parameters.get("ignore_labels", '["O"]'))
        found = self._pipeline(text, aggregation_strategy="none", ignore_labels=ignored)
        columns = {"label": "entity", "score": "score", "start": "start", "end": "end"}
        outputs = {name: [entity[key] for entity in found] for name, key in columns.items()}
        outputs["score"] = [float(score) for score in outputs["score"]]
        return outputs | self._truncated(parameters, text)

    def _classes(self, texts: Mapping[str, str], spans: Spans, labels: Sequence[str], parameters: Parameters) -> Outputs:
        pair = texts.get("text_pair")
        given: Any = texts["text_input"] if pair is None else {"text": texts["text_input"], "text_pair": pair}
        found = self._pipeline(given, top_k=None, truncation=True, function_to_apply=parameters.get("function_to_apply"))
        ranked = found[0] if isinstance(found[0], list) else found
        scores = {entry["label"]: float(entry["score"]) for entry in ranked}
        return {
            "label": [ranked[0]["label"]],
            "score": [float(ranked[0]["score"])],
            "scores": [scores[label] for label in self.labels],
            "result": [json.dumps(ranked[: parameters.get("top_k")])],
            **self._truncated(parameters, texts["text_input"], pair),
        }

    def _zero_shot(self, texts: Mapping[str, str], spans: Spans, labels: Sequence[str], parameters: Parameters) -> Outputs:
        text = texts["text_input"]
        options = {name: parameters[name] for name in ("hypothesis_template", "multi_label") if name in parameters}
        found = self._pipeline(text, candidate_labels=list(labels), **options)
        template = options.get("hypothesis_template", "This example is {}.")
        longest = max((template.format(label) for label in labels), key=len)
        return {
            "label": found["labels"][:1],
            "score": found["scores"][:1],
            "result": [json.dumps(found)],
            **self._truncated(parameters, text, longest),
        }

    def _question(self, texts: Mapping[str, str], spans: Spans, labels: Sequence[str], parameters: Parameters) -> Outputs:
        options = {name: parameters[name] for name in _QUESTION_PARAMETERS if name in parameters}
        windows = Windows(self._model, self._tokenizer, self._spec.max_length, self._spec.stride)
        found = answer_question(windows, texts["question"], texts["context"], **options)
        return {name: [getattr(answer, name) for answer in found] for name in ("answer", "score", "start", "end")}

    def _relation(self, texts: Mapping[str, str], spans: Spans, labels: Sequence[str], parameters: Parameters) -> Outputs:
        marked = with_markers(texts["text_input"], spans, self._spec.markers) if spans else texts["text_input"]
        return self._classes({"text_input": marked}, {}, labels, parameters)

    def _embedding(self, texts: Mapping[str, str], spans: Spans, labels: Sequence[str], parameters: Parameters) -> Outputs:
        text = texts["text_input"]
        tokens = self._tokenizer(text, truncation=True, return_tensors="pt")
        hidden = self._model(**tokens).last_hidden_state[0]  # [num_tokens, hidden_size]
        embedding = hidden[0] if self._spec.pooling == "cls" else hidden.mean(dim=0)  # [hidden_size]
        if parameters.get("normalize", self._spec.normalize):
            embedding = torch.nn.functional.normalize(embedding, dim=0)
        return {"embedding": embedding.tolist()} | self._truncated(parameters, text)

    def _truncated(self, parameters: Parameters, text: str, pair: str | None = None) -> Outputs:
        if parameters.get("truncation"):
            return {}
        tokens = self._tokenizer(text, pair, truncation=False, verbose=False)["input_ids"]
        return {TRUNCATED: [True]} if len(tokens) > self._spec.max_length else {}


_QUESTION_PARAMETERS = frozenset({"top_k", "max_answer_length", "handle_impossible_answer"})
_Respond = Callable[[SourceModel, Mapping[str, str], Spans, Sequence[str], Parameters], Outputs]
_TASKS: Mapping[str, tuple[frozenset[str], _Respond]] = {
    "token-classification": (frozenset({"aggregation_strategy", "ignore_labels"}), SourceModel._tokens),
    "text-classification": (_CLASSIFICATION, SourceModel._classes),
    "relation-extraction": (_CLASSIFICATION, SourceModel._relation),
    "zero-shot-classification": (frozenset({"hypothesis_template", "multi_label"}), SourceModel._zero_shot),
    "question-answering": (_QUESTION_PARAMETERS, SourceModel._question),
    "feature-extraction": (frozenset({"normalize"}), SourceModel._embedding),
}


def load(directory: str, task: str, served: EncoderSpec | None = None, labels: Sequence[str] | None = None) -> SourceModel:
    """The model ``directory`` (or hub id) for ``task``.

    ``served``: of the model to compare with; its pooling and markers, which the user may have chosen when it was exported, are
    taken. ``labels``: give a model that was not fine-tuned yet a head for these (none: a head without names); a head that the
    folder has with as many labels keeps what it learnt. Raises ModelNotFound, UnsupportedModel or InvalidRequest; without
    ``labels`` also for a checkpoint without the weights of the task's head.
    """
    with quiet_libraries():
        source = resolve(directory)
        config = load_config(source)
        if labels is not None and HEADS[task].output_name != "embeddings":
            loaded, notes = _load_with_head(source, config, task, labels)
        else:
            loaded, notes = load_encoder(source, config, task), ()
        longest = longest_sequence(loaded.model, position_offset(loaded.model))
        options = ExportOptions(Path(), task=task)
        if served is not None and served.pooling is not None:
            options = dataclasses.replace(options, pooling=served.pooling)
        if served is not None and served.markers:
            options = dataclasses.replace(options, markers=served.markers)
        settings = encoder_settings(loaded, options, longest)
        return SourceModel(loaded, task, settings.spec, notes)


def _load_with_head(source: Source, config: Any, task: str, labels: Sequence[str]) -> tuple[LoadedModel, tuple[str, ...]]:
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(_SEED)
    tokenizer = load_tokenizer(source)
    model, info = load_weights(source, config, _NewHead(HEADS[task].auto_class))
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    missing = ", ".join(sorted({*info["missing_keys"], *mismatched}))
    note = f"No weights for {missing}: random ones (seed {_SEED}), so this head has learnt nothing."
    return LoadedModel(source, model.eval().requires_grad_(False), tokenizer), (note,) if missing else ()


class _NewHead:
    """An auto class of transformers that gives a model a new head where the checkpoint's has another size."""

    def __init__(self, auto_class: Any) -> None:
        self._auto_class = auto_class

    def from_pretrained(self, location: str, **arguments: Any) -> Any:
        return self._auto_class.from_pretrained(location, ignore_mismatched_sizes=True, **arguments)


def with_markers(text: str, spans: Spans, markers: Sequence[str]) -> str:
    """The text with ``markers`` before and after its head and before and after its tail."""
    head, tail = spans["head"], spans["tail"]
    places = zip((*head, *tail), markers, (1, 0, 1, 0), strict=True)  # at one place a span ends before the next begins
    for position, marker, _ in sorted(places, key=lambda place: (place[0], place[2]), reverse=True):
        text = text[:position] + marker + text[position:]
    return text
