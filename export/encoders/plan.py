"""What the graph of an encoder will be, decided and guarded before the slow part."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import AttentionLayer, probe
from fastserve.export.encoders.heads import HEADS, Rows, rows_read
from fastserve.export.encoders.inputs import (
    check_tokenizer_inputs,
    longest_sequence,
    position_offset,
    takes_token_types,
    tells_texts_apart,
)
from fastserve.export.encoders.settings import encoder_settings
from fastserve.export.guards import check_layers, check_model
from fastserve.export.options import ExportOptions
from fastserve.export.proof import LONGEST_WINDOW
from fastserve.export.source import LoadedModel
from fastserve.manifest import EncoderSpec

_TASKS_OF_PAIRS = ("text-classification", "question-answering", "reranking", "zero-shot-classification")


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderPlan:
    """``longest``: tokens the model has positions for. ``notes``: for a person to read."""

    spec: EncoderSpec
    rows: Rows
    layers: list[AttentionLayer]
    token_types: bool
    position_offset: int
    longest: int
    notes: tuple[str, ...]

    @property
    def windows(self) -> frozenset[int]:
        return frozenset(layer.window for layer in self.layers)


def plan_encoder(loaded: LoadedModel, options: ExportOptions) -> EncoderPlan:
    """Raises UnsupportedModel, ModelNotFound, or InvalidRequest for an option the model cannot do."""
    model = loaded.model
    check_model(model, needed=("position_ids",))
    if options.task == "fill-mask" and loaded.tokenizer.mask_token_id is None:
        raise UnsupportedModel(f"{model.config.model_type}: its tokenizer has no mask token, so there is nothing to fill")
    check_tokenizer_inputs(model, loaded.tokenizer)
    layers = probe(model, causal=False)
    check_layers(model.config, layers, causal=False)
    offset = position_offset(model)
    longest = longest_sequence(model, offset)
    settings = encoder_settings(loaded, options, longest)
    plan = EncoderPlan(
        spec=settings.spec,
        rows=rows_read(HEADS[options.task], model.config, settings.spec.pooling),
        layers=layers,
        token_types=takes_token_types(model, loaded.tokenizer),
        position_offset=offset,
        longest=longest,
        notes=settings.notes,
    )
    return dataclasses.replace(plan, notes=(*plan.notes, *_notes(loaded, options, plan)))


def _notes(loaded: LoadedModel, options: ExportOptions, plan: EncoderPlan) -> list[str]:
    model, found = loaded.model, []
    if getattr(model.config, "auto_map", None):
        found.append(f"the code that comes with the checkpoint is not used, but transformers' {type(model).__name__}")
    if options.task in _TASKS_OF_PAIRS and tells_texts_apart(model) and not plan.token_types:
        found.append("the model tells two texts apart, but its tokenizer does not (as in transformers): both count as the first")
    if loaded.tokenizer.truncation_side == "left":
        found.append("the source's tokenizer truncates texts at their beginning; served with truncation=true, at their end")
    if options.task == "reranking" and "Identity" in _score_function(model.config):
        found.append(
            "sentence-transformers gives this model's scores as they are (function_to_apply=none), transformers by a sigmoid"
        )
    if (window := max(plan.windows)) > LONGEST_WINDOW and plan.longest > window:
        found.append(f"the proof does not reach beyond the sliding window of {window:,} tokens")
    return found


def _score_function(config: Any) -> str:
    """The class by which a CrossEncoder of sentence-transformers makes its scores; empty where config.json names none."""
    newer = getattr(config, "sentence_transformers", None)
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    return str(named or getattr(config, "sbert_ce_default_activation_function", None) or "")
