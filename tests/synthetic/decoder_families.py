"""Every decoder family this project vouches for, as a tiny random model, and what makes each of them special.

The tests of the exporter, those against a real Triton and the table in the README all go through :data:`FAMILIES` and
:data:`REFUSED`, so a row of that table is there because tests ran it. Windows are shorter than the prompts of the proof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers

from tests.synthetic.lost_features import EMBEDDING_SCALE, experts_off, qk_norms_off, set_everywhere, sinks_off, zero_biases
from tests.synthetic.tiny_models import decoder_settings, random_model, save_model

Drop = Mapping[str, Any] | Callable[[Any], None]
"""How a model loses a feature: other values in its configuration, or a change to the model made of it."""

LONGROPE_LIMIT = 48
"""Tokens up to which the tiny Phi-3 has its short factors."""
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": LONGROPE_LIMIT,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderFamily:
    """One row of the table. ``features``: by the name a person knows them, how a model of the family loses each."""

    title: str
    config_class: type[Any]
    settings: Mapping[str, Any]
    features: Mapping[str, Drop]
    max_model_len: int | None = None
    """``ExportOptions.max_model_len``"""

    def config(self, **changes: Any) -> Any:
        """The tiny model's configuration, with some values changed."""
        return self.config_class(**{**self.settings, **changes})

    def save(self, directory: Path) -> Path:
        """Save the tiny model with a tokenizer as a Hugging Face folder; returns ``directory``."""
        return save_model(self.config(), directory)

    def without(self, feature: str) -> Any:
        """The same model, all its weights, but for one feature."""
        drop = self.features[feature]
        if callable(drop):
            model = random_model(self.config())
            drop(model)
            return model
        model = random_model(self.config(**drop))
        model.load_state_dict(random_model(self.config()).state_dict(), strict=False)
        return model


def _alternating(**settings: Any) -> dict[str, Any]:
    """Three layers, of which the second sees everything and the others a window."""
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    return decoder_settings(**{"num_hidden_layers": 3, "sliding_window": 12, "layer_types": layer_types} | settings)


_TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_ALL_FULL = {"layer_types": ["full_attention"] * 3}


FAMILIES: dict[str, DecoderFamily] = {
    "llama": DecoderFamily(
        "Llama 2, 3, SmolLM2",
        transformers.LlamaConfig,
        decoder_settings(tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE),
        {"Llama 3 RoPE scaling": {"rope_parameters": _DEFAULT_ROPE}},
    ),
    "mistral": DecoderFamily(
        "Mistral", transformers.MistralConfig, decoder_settings(sliding_window=12), {"sliding window": {"sliding_window": None}}
    ),
    "qwen2": DecoderFamily(
        "Qwen2, Qwen2.5",
        transformers.Qwen2Config,
        decoder_settings(sliding_window=12, use_sliding_window=True, max_window_layers=1),
        {
            "window in later layers": {"use_sliding_window": False},
            "query, key and value biases": zero_biases("q_proj", "k_proj", "v_proj"),
        },
    ),
    "qwen3": DecoderFamily(
        "Qwen3", transformers.Qwen3Config, decoder_settings(head_dim=32), {"query and key norms": qk_norms_off}
    ),
    "gemma": DecoderFamily("Gemma", transformers.GemmaConfig, decoder_settings(head_dim=32), EMBEDDING_SCALE),
    "gemma2": DecoderFamily(
        "Gemma 2",
        transformers.Gemma2Config,
        _alternating(head_dim=32, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        {
            "alternating windows": _ALL_FULL,
            "attention soft cap": {"attn_logit_softcapping": None},
            "final soft cap": {"final_logit_softcapping": None},
            "query scaling": {"query_pre_attn_scalar": 32},
            **EMBEDDING_SCALE,
        },
    ),
    "gemma3": DecoderFamily(
        "Gemma 3 (text)",
        transformers.Gemma3TextConfig,
        _alternating(
            head_dim=32,
            query_pre_attn_scalar=24,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": _DEFAULT_ROPE,
            },
        ),
        {
            "alternating windows": {"sliding_window": 4096},
            "RoPE per kind of layer": {"rope_parameters": {"full_attention": _DEFAULT_ROPE, "sliding_attention": _DEFAULT_ROPE}},
            "query scaling": {"query_pre_attn_scalar": 32},
            "query and key norms": qk_norms_off,
            **EMBEDDING_SCALE,
        },
    ),
    "gemma3_image": DecoderFamily(
        "Gemma 3 with images (its text part)",
        transformers.Gemma3Config,
        {
            "text_config": _alternating(head_dim=32),
            "vision_config": _TINY_VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 260,
        },
        {"alternating windows": {"text_config": _alternating(head_dim=32, sliding_window=4096)}},
    ),
    "phi": DecoderFamily(
        "Phi 1, 1.5, 2",
        transformers.PhiConfig,
        decoder_settings(partial_rotary_factor=0.5),
        {"partial RoPE": {"partial_rotary_factor": 1.0, "rope_parameters": _DEFAULT_ROPE | {"partial_rotary_factor": 1.0}}},
    ),
    "phi3": DecoderFamily(
        "Phi 3, 3.5, 4",
        transformers.Phi3Config,
        decoder_settings(sliding_window=12, rope_parameters=_LONGROPE, original_max_position_embeddings=LONGROPE_LIMIT),
        {
            "sliding window": {"sliding_window": None},
            "longrope, short factors": {"rope_parameters": _LONGROPE | {"short_factor": [1.0] * 8}},
        },
    ),
    "phi3-long": DecoderFamily(
        "Phi 3, 3.5, 4 with `--max-model-len`",
        transformers.Phi3Config,
        decoder_settings(rope_parameters=_LONGROPE, original_max_position_embeddings=LONGROPE_LIMIT),
        {"longrope, long factors": {"rope_parameters": _LONGROPE | {"long_factor": _LONGROPE["short_factor"]}}},
        max_model_len=256,
    ),
    "gpt2": DecoderFamily(
        "GPT-2",
        transformers.GPT2Config,
        {
            **decoder_settings(),
            "scale_attn_by_inverse_layer_idx": True,
        },
        {"scale by layer": {"scale_attn_by_inverse_layer_idx": False}},
    ),
    "gpt_bigcode": DecoderFamily(
        "StarCoder, SantaCoder",
        transformers.GPTBigCodeConfig,
        decoder_settings(),
        {"attention scale": {"scale_attn_weights": False}},
    ),
    "gpt_neox": DecoderFamily(
        "GPT-NeoX, Pythia",
        transformers.GPTNeoXConfig,
        decoder_settings(rotary_pct=0.5),
        {
            "partial RoPE": {"rotary_pct": 1.0},
            "parallel residual": {"use_parallel_residual": False},
        },
    ),
    "opt": DecoderFamily(
        "OPT",
        transformers.OPTConfig,
        decoder_settings(ffn_dim=96, word_embed_proj_dim=32),
        {"positions shifted by 2": set_everywhere("offset", 0)},
    ),
    "starcoder2": DecoderFamily(
        "StarCoder2",
        transformers.Starcoder2Config,
        decoder_settings(sliding_window=12),
        {"sliding window": {"sliding_window": None}, "biases": zero_biases("q_proj", "k_proj", "v_proj", "o_proj")},
    ),
    "smollm3": DecoderFamily(
        "SmolLM3",
        transformers.SmolLM3Config,
        decoder_settings(num_hidden_layers=3, no_rope_layer_interval=2),
        {"layers without RoPE": {"no_rope_layers": [1, 1, 1]}},
    ),
    "olmo": DecoderFamily(
        "OLMo", transformers.OlmoConfig, decoder_settings(clip_qkv=0.5), {"clipped query, key and value": {"clip_qkv": None}}
    ),
    "olmo2": DecoderFamily("OLMo 2", transformers.Olmo2Config, decoder_settings(), {"query and key norms": qk_norms_off}),
    "granite": DecoderFamily(
        "Granite",
        transformers.GraniteConfig,
        decoder_settings(attention_multiplier=0.4, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0),
        {
            "attention multiplier": {"attention_multiplier": 0.25},
            "embedding multiplier": {"embedding_multiplier": 1.0},
            "residual multiplier": {"residual_multiplier": 1.0},
            "logits scaling": {"logits_scaling": 1.0},
        },
    ),
    "cohere": DecoderFamily(
        "Command R",
        transformers.CohereConfig,
        decoder_settings(logit_scale=0.25, use_qk_norm=True),
        {"logit scale": {"logit_scale": 1.0}, "query and key norms": {"use_qk_norm": False}},
    ),
    "cohere2": DecoderFamily(
        "Command R7B, A",
        transformers.Cohere2Config,
        _alternating(logit_scale=0.25, head_dim=16),
        {
            "logit scale": {"logit_scale": 1.0},
            "alternating windows": {"sliding_window": 4096},
            "layers without RoPE": {"layer_types": ["sliding_attention"] * 3, "sliding_window": 12},
        },
    ),
    "mixtral": DecoderFamily(
        "Mixtral",
        transformers.MixtralConfig,
        decoder_settings(num_local_experts=4),
        {"two experts a token": {"num_experts_per_tok": 1}},
    ),
    "qwen3_moe": DecoderFamily(
        "Qwen3-MoE",
        transformers.Qwen3MoeConfig,
        decoder_settings(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True, mlp_only_layers=[0]
        ),
        {"experts' weights sum to 1": {"norm_topk_prob": False}, "experts beside dense layers": experts_off},
    ),
    "gpt_oss": DecoderFamily(
        "GPT-OSS (not the quantised checkpoint)",
        transformers.GptOssConfig,
        _alternating(head_dim=16, num_local_experts=4, num_experts_per_tok=2, swiglu_limit=0.5, rope_parameters=_DEFAULT_ROPE),
        {
            "attention sinks": sinks_off,
            "alternating windows": {"sliding_window": 4096},
            "clamped experts": {"swiglu_limit": 7.0},
            "biases of experts": zero_biases("gate_up_proj", "down_proj"),
        },
    ),
}


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "GPT-J": ("attention in its own modules", transformers.GPTJConfig),
    "CodeGen": ("attention in its own modules", transformers.CodeGenConfig),
    "GPT-Neo": ("attention in its own modules", transformers.GPTNeoConfig),
    "Falcon": ("attention in its own modules", transformers.FalconConfig),
    "BLOOM": ("attention in its own modules", transformers.BloomConfig),
    "MPT": ("attention in its own modules", transformers.MptConfig),
    "XGLM": ("attention in its own modules", transformers.XGLMConfig),
    "Llama 4": ("chunked attention", transformers.Llama4TextConfig),
    "LFM2": ("layers of type conv", lambda: transformers.Lfm2Config(full_attn_idxs=[2])),
    "Mamba": ("layers of type linear_attention", transformers.MambaConfig),
    "T5, BART and other encoder-decoders": ("an encoder-decoder", transformers.T5Config),
}
"""Families that are refused by what their configuration says: the words for what cannot be represented, a configuration."""
