"""What the manifest says of an imported encoder beside its graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from fastserve.errors import InvalidRequest, UnsupportedModel
from fastserve.export.encoders.heads import HEADS
from fastserve.export.encoders.settings import EncoderSettings, encoder_settings
from fastserve.export.options import ExportOptions
from fastserve.export.padded.labels import read_labels
from fastserve.export.source import LoadedModel, Source, read_json, unreadable
from fastserve.manifest import TensorSpec

_USUAL_LENGTH = 512
"""Tokens, where nothing says how many positions a graph has."""
_UNBOUNDED = 10**6
"""Tokenizers without a limit say they take more tokens than this."""
_SHIFTED_POSITIONS = ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl")
"""Families whose positions begin after the padding id: as many of their positions are never used."""


@dataclasses.dataclass(frozen=True, slots=True)
class GraphModel:
    """Stands in for the model of a graph of which only the files beside it are known. ``longest``: tokens it takes."""

    config: Any
    vocab_size: int
    longest: int


def model_of(source: Source, tokenizer: Any, options: ExportOptions) -> GraphModel:
    """Raises ModelNotFound for a configuration that cannot be read, InvalidRequest for bad labels."""
    settings = read_json(source, "config.json", dict) or {}
    labels = read_labels(options.labels) if options.labels is not None else None
    if labels is not None:
        settings = {**settings, "id2label": dict(enumerate(labels))}
        settings.pop("label2id", None)
        settings.pop("num_labels", None)
    if HEADS[options.task].names_labels and "id2label" not in settings:
        raise InvalidRequest("labels", None, "a file with a label on each line (--labels FILE), for config.json names none")
    kind = settings.pop("model_type", "onnx")
    make: Any = PretrainedConfig
    try:
        config = make(**settings)
    except Exception as error:  # transformers checks what it is given in many ways
        raise unreadable(source, "config.json", error) from error
    config.model_type = kind
    return GraphModel(config, settings.get("vocab_size") or len(tokenizer), _longest(settings, kind, tokenizer, options))


def _longest(settings: dict[str, Any], kind: str, tokenizer: Any, options: ExportOptions) -> int:
    """Tokens the graph has positions for, as far as anything says; the proof tries as many."""
    if positions := settings.get("max_position_embeddings"):
        unused = (settings.get("pad_token_id") or 0) + 1 if kind in _SHIFTED_POSITIONS else 0
        return int(positions) - unused
    if options.max_length is not None:
        return options.max_length
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < _UNBOUNDED else _USUAL_LENGTH


def padded_settings(loaded: LoadedModel, options: ExportOptions, outputs: tuple[TensorSpec, ...]) -> EncoderSettings:
    """``loaded.model``: a :class:`GraphModel`. ``outputs``: those chosen for the task.

    Raises InvalidRequest naming an option the graph cannot do, UnsupportedModel.
    """
    head, shape = HEADS[options.task], outputs[0].shape
    pooled = len(shape) == 2 and head.output_name == "embeddings"
    if pooled and options.pooling is not None:
        raise InvalidRequest("pooling", options.pooling, f"nothing: the graph's output {outputs[0].name} is one embedding a text")
    asked = dataclasses.replace(options, pooling="mean") if pooled else options
    settings = encoder_settings(loaded, asked, loaded.model.longest, loaded.model.vocab_size)
    labels = settings.spec.labels
    if options.task == "fill-mask" and shape[-1] != loaded.model.vocab_size:
        raise UnsupportedModel(
            f"the graph's output {outputs[0].name} has {shape[-1]} columns, but the vocabulary {loaded.model.vocab_size} tokens; "
            "allowed: a column for each token (vocab_size in config.json, else what the tokenizer has)"
        )
    if head.names_labels and shape[-1] != len(labels):
        where = str(options.labels) if options.labels is not None else str(Path(loaded.source.location) / "config.json")
        raise UnsupportedModel(
            f"{where} names {len(labels)} labels, but the graph's output {outputs[0].name} has {shape[-1]} columns; allowed: a "
            "label for each column, in their order (--labels FILE)"
        )
    return dataclasses.replace(settings, spec=dataclasses.replace(settings.spec, pooling=None)) if pooled else settings
