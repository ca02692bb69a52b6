"""Refuses a GGUF file that says more than transformers reads of it.

transformers skips every tensor and key it has no place for, and the model it then builds is what the export is proven
against: what was skipped would be lost without a sign. Here every tensor and every key of the architecture must have been
read, or must ask for nothing beyond what the loaded configuration does anyway.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
from transformers import modeling_gguf_pytorch_utils

from fastserve.errors import ModelNotFound, UnsupportedModel

_HARMLESS_KEYS = frozenset(
    {
        "vocab_size",
        "tensor_data_layout",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
    }
)
"""Keys that change nothing by themselves: those of yarn need ``rope.scaling.type`` yarn, which is refused."""

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scale_linear": (0.0, 1.0),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.shared_kv_layers": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
}
"""Keys that transformers does not read, with the values that ask for nothing."""


def read_gguf(path: Path) -> Any:
    """A ``gguf.GGUFReader``; maps the file, reads the header. Raises ModelNotFound when it is no GGUF file."""
    try:
        return gguf.GGUFReader(str(path))
    except Exception as error:  # the library raises whatever the bytes make it trip over
        raise ModelNotFound(f"{path}: not a GGUF file, or only a part of one ({error})") from error


def check_gguf_keys(reader: Any, config: Any) -> None:
    """Every ``<architecture>.*`` key must be in ``config``, or be neutral. Raises UnsupportedModel naming the key."""
    architecture = str(reader.fields["general.architecture"].contents())
    loader: Any = modeling_gguf_pytorch_utils
    by_family = loader.GGUF_TO_TRANSFORMERS_MAPPING["config"]
    read = by_family.get(config.model_type.removesuffix("_text")) or by_family.get(architecture) or {}
    for key, field in reader.fields.items():
        suffix = key.removeprefix(f"{architecture}.")
        if suffix == key or read.get(suffix) or suffix in _HARMLESS_KEYS:
            continue
        value = field.contents()
        if (
            suffix == "attention.sliding_window"
            and isinstance(value, int)
            and (value == 0 or value >= config.max_position_embeddings)
        ):
            continue  # it hides nothing
        if not any(_equal(value, neutral) for neutral in (*_NEUTRAL_VALUES.get(suffix, ()), *_from_config(suffix, config))):
            raise UnsupportedModel(
                f"{config.model_type}: the GGUF file sets {key} = {value}, which transformers does not read; "
                "export the model from its Hugging Face folder"
            )
    if getattr(config, "sliding_window", None) and not any(key.endswith(".sliding_window") for key in reader.fields):
        raise UnsupportedModel(f"{config.model_type}: the GGUF file does not say its sliding window")


def _from_config(suffix: str, config: Any) -> list[Any]:
    """What ``config`` says about a key that transformers did not take from the file."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    rotated = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    known: dict[str, Any] = {
        "rope.dimension_count": int(head_size * rotated),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": (rope.get("sliding_attention") or {}).get("rope_theta"),
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.scale": head_size**-0.5,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "use_parallel_residual": getattr(config, "use_parallel_residual", None),
    }
    return [known[suffix]] if known.get(suffix) is not None else []


def _equal(value: Any, wanted: Any) -> bool:
    numbers = isinstance(value, (int, float)) and isinstance(wanted, (int, float))
    return math.isclose(value, wanted, rel_tol=1e-6) if numbers else bool(value == wanted)


def check_gguf_tensors(reader: Any, model: Any) -> None:
    """Every tensor must have a place in ``model``. Raises UnsupportedModel naming those that were skipped."""
    architecture = str(reader.fields["general.architecture"].contents())
    loader: Any = modeling_gguf_pytorch_utils
    processor = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)(config={})
    placed = set(loader.get_gguf_hf_weights_map(model, processor))
    placed |= {"output.weight"} if architecture == "gpt2" else set()  # placed by the processor itself
    skipped = sorted(str(tensor.name) for tensor in reader.tensors if tensor.name not in placed)
    if not skipped:
        return
    what = "; it scales the rotary embedding" if any(name.startswith("rope_f") for name in skipped) else ""
    raise UnsupportedModel(
        f"{model.config.model_type}: transformers skips {len(skipped)} tensors of the GGUF file ({', '.join(skipped[:3])}"
        f"{', ...' if len(skipped) > 3 else ''}{what}); export the model from its Hugging Face folder"
    )
