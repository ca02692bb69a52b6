"""What the manifest says of an encoder beside its graph: from the user's options, else from the source's own files."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastserve.errors import InvalidRequest, UnsupportedModel
from fastserve.export.encoders.heads import HEADS
from fastserve.export.encoders.markers import entity_markers
from fastserve.export.encoders.sentence_files import SentenceSettings, sentence_settings
from fastserve.export.options import ExportOptions
from fastserve.export.source import LoadedModel
from fastserve.manifest import EncoderSpec

_QUESTION_ANSWERING = "question-answering"
_LONGEST_QUESTION_AND_CONTEXT = 384
"""Tokens of a window of question answering, unless the user says more: what transformers' pipeline takes, and what most models
were trained on."""
_STRIDE = 128

_PROBLEM_TYPES = {"multi_label_classification": "multi_label", "regression": "regression"}


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderSettings:
    """``notes``: for a person to read."""

    spec: EncoderSpec
    notes: tuple[str, ...]


def encoder_settings(loaded: LoadedModel, options: ExportOptions, longest: int, vocab_size: int | None = None) -> EncoderSettings:
    """``longest``: tokens the model has positions for. ``vocab_size``: rows of its embedding; None: ask the model.

    Raises UnsupportedModel, ModelNotFound, or InvalidRequest naming an option the model cannot do.
    """
    head, model, tokenizer = HEADS[options.task], loaded.model, loaded.tokenizer
    embeds = head.output_name == "embeddings"
    sentence = sentence_settings(loaded.source, tokenizer) if embeds else SentenceSettings()
    max_length = _max_length(options, longest, (tokenizer.model_max_length, sentence.max_length))
    notes = list(sentence.notes)
    if embeds and options.pooling is None and sentence.pooling is None:
        notes.append("nothing says how to pool token embeddings: their mean is taken (--pooling cls for the first token's)")
    named = labels(model) if head.names_labels else ()
    if options.task == "zero-shot-classification" and not any(label.lower().startswith("entail") for label in named):
        notes.append(f"no label begins with 'entail': the last one, {named[-1]}, counts as entailment")
    spec = EncoderSpec(
        max_length=max_length,
        stride=_stride(options, max_length),
        output=head.output,
        labels=named,
        problem_type=_problem_type(model.config) if head.names_labels else "single_label",
        aggregation_strategy=options.aggregation_strategy or "simple",
        pooling=(options.pooling or sentence.pooling or "mean") if embeds else None,
        normalize=sentence.normalize,
        markers=_markers(loaded, options, vocab_size) if options.task == "relation-extraction" else (),
    )
    return EncoderSettings(spec, tuple(notes))


def labels(model: Any) -> tuple[str, ...]:
    """The names of a classifier's labels, in the order of their ids. Raises UnsupportedModel when the ids leave gaps."""
    named = {int(index): str(label) for index, label in model.config.id2label.items()}
    if sorted(named) != list(range(len(named))):
        raise UnsupportedModel(f"{model.config.model_type}: id2label has ids {sorted(named)}, not 0 to {len(named) - 1}")
    return tuple(named[index] for index in range(len(named)))


def _problem_type(config: Any) -> str:
    """As transformers' pipelines see it: one label is a probability of its own."""
    default = "multi_label" if config.num_labels == 1 else "single_label"
    return _PROBLEM_TYPES.get(config.problem_type, default)


def _markers(loaded: LoadedModel, options: ExportOptions, vocab_size: int | None) -> tuple[str, ...]:
    rows = loaded.model.get_input_embeddings().weight.shape[0] if vocab_size is None else vocab_size
    return entity_markers(loaded.tokenizer, rows, options.markers)


def _max_length(options: ExportOptions, limit: int, others: tuple[int | None, ...]) -> int:
    """``limit``: the model's positions. ``others``: what the source's files say besides."""
    if options.max_length is not None:
        if options.max_length > limit:
            raise InvalidRequest("max_length", options.max_length, f"at most {limit} tokens, for which the model has positions")
        return options.max_length
    usual = _LONGEST_QUESTION_AND_CONTEXT if options.task == _QUESTION_ANSWERING else None
    return min([limit, *(other for other in (*others, usual) if other is not None)])


def _stride(options: ExportOptions, max_length: int) -> int:
    if options.stride is None:
        return min(_STRIDE, max_length // (2 if options.task == _QUESTION_ANSWERING else 4))
    if options.stride > max_length // 2:
        raise InvalidRequest("stride", options.stride, f"at most {max_length // 2} tokens, half of max_length")
    return options.stride
