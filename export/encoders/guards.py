"""Refuses encoders that the packed graph would get silently wrong, by name and before the slow part."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fastserve.errors import UnsupportedModel
from fastserve.export.encoders.heads import HEADS, Head
from fastserve.export.guards import check_experts, check_features

_OWN_COMPUTATION = {
    "big_bird": "block-sparse attention",
    "convbert": "convolutions beside attention",
    "deberta": "disentangled attention (relative positions)",
    "deberta-v2": "disentangled attention (relative positions)",
    "fnet": "Fourier transforms instead of attention",
    "funnel": "sequences that get shorter from block to block",
    "ibert": "integer arithmetic of its own",
    "layoutlm": "boxes on a page",
    "longformer": "local and global attention of its own",
    "luke": "entities beside words",
    "mobilebert": "embeddings of three neighbouring tokens (trigram_input)",
    "mpnet": "a relative position bias",
    "mra": "approximated attention",
    "nystromformer": "approximated attention",
    "reformer": "hashed attention",
    "roformer": "attention in its own modules",
    "squeezebert": "convolutions instead of projections",
    "tapas": "rows and columns of a table",
    "xmod": "an adapter for each language",
    "yoso": "approximated attention",
}
"""model_type -> what it computes that PackedAttention and a flat token axis cannot represent."""


def check_encoder_config(config: Any, task: str) -> None:
    """Refuse what is no bidirectional encoder with ordinary attention and the head of ``task``.

    ``config``: a transformers PretrainedConfig.
    """
    kind, head = config.model_type, HEADS[task]
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind}: an encoder-decoder (seq2seq) model; {task} takes encoders")
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(f"{kind}: a causal decoder; {task} takes encoders, whose tokens see both sides")
    if getattr(config, "is_decoder", False):
        raise UnsupportedModel(f"{kind}: configured as a causal decoder (is_decoder); {task} takes encoders")
    if kind in _OWN_COMPUTATION:
        raise UnsupportedModel(f"{kind}: {_OWN_COMPUTATION[kind]} cannot be represented")
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind not in head.families:
        raise UnsupportedModel(f"{kind}: transformers has no encoder of this family with a head for {task}")
    check_features(config)
    check_experts(config)
    _check_architecture(config, task, head)


def _check_architecture(config: Any, task: str, head: Head) -> None:
    """A classifier of texts and one of tokens may have weights of the same names: only the name of the class tells them apart."""
    others = {name for other in HEADS.values() if other.auto_class is not head.auto_class for name in other.class_names()}
    declared = set(getattr(config, "architectures", None) or ())
    if (head.names_labels or task == "question-answering") and declared & others and not declared & head.class_names():
        raise UnsupportedModel(
            f"{config.model_type}: config.json says the checkpoint is a {' or '.join(sorted(declared))}; "
            f"{task} takes a {head.families[config.model_type]}"
        )
