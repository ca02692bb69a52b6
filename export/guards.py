"""Refuses models that the packed graph would get silently wrong, by name and before the slow part."""

from __future__ import annotations

import inspect
import math
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fastserve.errors import UnsupportedModel
from fastserve.export.attention import NO_WINDOW, AttentionLayer

OWN_ATTENTION = frozenset(
    {"bloom", "codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "mpt", "openai-gpt", "rwkv", "xglm", "xlnet"}
)
"""Families whose modules compute attention themselves instead of asking transformers' attention interface."""

_SHIFTED_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Families whose positions begin after the padding id instead of at 0."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_MAX_HEAD_SIZE = 256
"""The attention kernel takes multiples of 8 up to this."""

_ATTENTION_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

_REFUSED_FEATURES: dict[str, str] = {
    "alibi": "ALiBi position bias",
    "use_alibi": "ALiBi position bias",
    "use_bidirectional_attention": "non-causal attention",
    "attention_chunk_size": "chunked attention",
    "num_kv_shared_layers": "key/value sharing between layers",
    "add_cross_attention": "cross-attention",
    "relative_attention_num_buckets": "relative position bias",
}
"""Config keys that change attention in a way the graph cannot express, when set."""


def check_config(config: Any) -> None:
    """Refuse what is not a causal decoder with ordinary attention. ``config``: a transformers PretrainedConfig."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind}: an encoder-decoder (seq2seq) model; text-generation takes decoder-only models")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UnsupportedModel(
            f"{kind}: an encoder-only model, it cannot generate text; text-generation takes decoder-only models"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(f"{kind}: not a causal language model; text-generation takes decoder-only models")
    if kind in OWN_ATTENTION:
        raise UnsupportedModel(f"{kind}: this family computes attention in its own modules, which cannot be paged")
    if kind in _SHIFTED_POSITIONS:
        raise UnsupportedModel(f"{kind}: positions that begin after the padding id cannot be represented")
    check_features(config)


def check_experts(config: Any) -> None:
    """Refuse a mixture of experts: for graphs in which nothing stands in for it."""
    text = config.get_text_config(decoder=True)
    if found := experts(text):
        raise UnsupportedModel(f"{config.model_type}: a mixture of experts ({found[0]}={found[1]}) cannot be represented")


def experts(text: Any) -> tuple[str, int] | None:
    """(key of the configuration, number of experts), if there are any."""
    for key in _EXPERTS:
        if isinstance(count := getattr(text, key, None), int) and count > 0:
            return key, count
    return None


def check_features(config: Any) -> None:
    """Refuse what no graph of ours can express: sizes of heads, biases, kinds of layers."""
    kind, text = config.model_type, config.get_text_config(decoder=True)
    for key, feature in _REFUSED_FEATURES.items():
        if getattr(text, key, None):
            raise UnsupportedModel(f"{kind}: {feature} ({key}={getattr(text, key)}) cannot be represented")
    _check_sizes(kind, text)
    if getattr(text, "position_embedding_type", None) in ("alibi", "relative_key", "relative_key_query"):
        raise UnsupportedModel(f"{kind}: position_embedding_type={text.position_embedding_type} cannot be represented")
    for layer_type in getattr(text, "layer_types", None) or ():
        if layer_type not in _ATTENTION_LAYER_TYPES:
            raise UnsupportedModel(f"{kind}: layers of type {layer_type} (layer_types) cannot be represented")


def _check_sizes(kind: str, text: Any) -> None:
    size, heads = getattr(text, "head_dim", None), getattr(text, "num_attention_heads", None)
    if size is None and isinstance(heads, int) and heads > 0:
        size = text.hidden_size // heads
    if isinstance(size, int):
        _check_head_size(kind, size)


def _check_head_size(kind: str, size: int) -> None:
    if size % 8 or not 0 < size <= _MAX_HEAD_SIZE:
        raise UnsupportedModel(
            f"{kind}: heads of {size} elements; the attention kernel takes multiples of 8 up to {_MAX_HEAD_SIZE}"
        )


def check_model(model: Any, needed: tuple[str, ...] = ("position_ids", "logits_to_keep")) -> None:
    """Refuse a model class that never asks the attention interface (it would only log a warning), or that cannot be told
    what it must be: which positions its tokens have, which rows are wanted."""
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(f"{model.config.model_type}: {type(model).__name__} computes attention in its own modules")
    if not model._can_set_experts_implementation():
        check_experts(model.config)
    parameters = inspect.signature(model.forward).parameters
    for name in needed:
        if name not in parameters:
            raise UnsupportedModel(f"{model.config.model_type}: {type(model).__name__}.forward takes no {name}")


def check_layers(config: Any, layers: list[AttentionLayer], *, causal: bool = True) -> None:
    """Every attention layer must have reached the op, and every feature the config sets must have arrived with it."""
    text = config.get_text_config(decoder=True)
    num_layers = text.num_hidden_layers * (getattr(text, "inner_group_num", None) or 1)  # ALBERT's layers within a layer
    if sorted(layer.index for layer in layers) != list(range(num_layers)):
        raise UnsupportedModel(
            f"{config.model_type}: {len(layers)} attention layers reached the attention interface, the model has "
            f"{num_layers}; the others compute something the graph cannot represent"
        )
    for layer in layers:
        _check_head_size(config.model_type, layer.head_size)
        window = float(_window(text, layer.index, causal))
        for key, wanted, got in (("sliding_window", window, float(layer.window)), *_expectations(text, layer)):
            if not math.isclose(wanted, got, rel_tol=1e-6):
                raise UnsupportedModel(
                    f"{config.model_type}: {key} asks for {wanted:g} in attention layer {layer.index}, "
                    f"but {got:g} reached the attention interface"
                )


def _expectations(config: Any, layer: AttentionLayer) -> list[tuple[str, float, float]]:
    """(config key, value it asks for in this layer, value that arrived)."""
    expectations = [("attn_logit_softcapping", float(getattr(config, "attn_logit_softcapping", None) or 0.0), layer.softcap)]
    if (scalar := getattr(config, "query_pre_attn_scalar", None)) is not None:
        expectations.append(("query_pre_attn_scalar", scalar**-0.5, layer.scale))
    if (multiplier := getattr(config, "attention_multiplier", None)) is not None:
        expectations.append(("attention_multiplier", multiplier, layer.scale))
    if getattr(config, "scale_attn_weights", True) is False or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        scale = layer.head_size**-0.5 if config.scale_attn_weights else 1.0
        scale /= layer.index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        expectations.append(("scale_attn_weights / scale_attn_by_inverse_layer_idx", scale, layer.scale))
    return expectations


def _window(config: Any, index: int, causal: bool) -> int:
    """What should arrive. A causal window counts the token itself; of others the configuration says how far each side reaches."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return NO_WINDOW
    if layer_types and layer_types[index] != "sliding_attention":
        return NO_WINDOW
    return int(window) if causal else int(window) + 1
