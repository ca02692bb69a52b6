"""Looks at a model before an export: the guards that need no weights, and the sizes that memory and speed follow from.

The model is made on torch's "meta" device, where tensors have shapes and no bytes; so a 70B model takes seconds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fastserve.config import GENERATION_TASK
from fastserve.errors import InvalidRequest, UnsupportedModel, first_line
from fastserve.export.attention import AttentionLayer, probe
from fastserve.export.encoders.guards import check_encoder_config
from fastserve.export.encoders.heads import HEADS
from fastserve.export.guards import check_config, check_layers, check_model
from fastserve.export.options import INT4, TASKS
from fastserve.export.precision_choice import WEIGHT_BITS
from fastserve.export.quiet import quiet_libraries
from fastserve.export.rotary import context_limit
from fastserve.export.source import load_config, resolve

_FP32_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """A model that the guards let pass. Bytes are those of fp32.

    ``matmul_elements``: weights that every token is multiplied with; ``head_elements``: those of a language model's head, else 0.
    ``kv_bytes_per_token``: 0 for encoders. ``max_length``: longest context or window in tokens. ``notes``: what only the export
    itself can find out, one sentence each.
    """

    label: str
    task: str
    model_type: str
    num_parameters: int
    matmul_elements: int
    kv_bytes_per_token: int
    max_length: int
    notes: tuple[str, ...]
    head_elements: int = 0

    @property
    def weight_bytes(self) -> int:
        return self.num_parameters * _FP32_BYTES

    @property
    def int8_weight_bytes(self) -> int:
        """Of an int8 export of a language model: a byte for each weight that tokens are multiplied with, a tied embedding too."""
        return self.matmul_elements + (self.num_parameters - self.matmul_elements) * _FP32_BYTES

    @property
    def int4_weight_bytes(self) -> int:
        """Likewise of an int4 export that gives nothing but the head more bits."""
        return self.int8_weight_bytes - int((self.matmul_elements - self.head_elements) * (8 - WEIGHT_BITS[INT4]) / 8)


def inspect_model(source: str, task: str | None = None) -> Inspection:
    """Raises what the export would raise before it reads weights: ModelNotFound, UnsupportedModel naming the feature,
    InvalidRequest. ``task``: None takes it from the architecture that config.json names."""
    if task is not None and task not in TASKS:
        raise InvalidRequest("task", task, " or ".join(TASKS))
    with quiet_libraries():
        found = resolve(source)
        config = load_config(found)
        task = task or task_of(config, is_gguf=found.gguf_file is not None)
        generates = task == GENERATION_TASK
        if generates:
            check_config(config)
        else:
            check_encoder_config(config, task)
        longest = context_limit(config)
        model = _without_weights(config, AutoModelForCausalLM if generates else HEADS[task].auto_class)
        check_model(model, *(() if generates else (("position_ids",),)))
        layers, notes = _layers(model, causal=generates)
        return Inspection(
            label=found.label,
            task=task,
            model_type=config.model_type,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            matmul_elements=_matmul_elements(model),
            kv_bytes_per_token=_kv_bytes(layers, config) if generates else 0,
            max_length=longest,
            notes=notes,
            head_elements=_head_elements(model) if generates else 0,
        )


def _head_elements(model: Any) -> int:
    head = model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())


def task_of(config: Any, *, is_gguf: bool = False) -> str:
    """The task of the first architecture that config.json names. Raises UnsupportedModel when it names none that is known."""
    names = list(getattr(config, "architectures", None) or ())
    if is_gguf or set(names) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return GENERATION_TASK
    for task, head in HEADS.items():
        if set(names) & head.class_names():
            return task
    said = ", ".join(names) or "no architecture"
    raise UnsupportedModel(f"{config.model_type}: config.json names {said}, which says no task; say --task")


def _without_weights(config: Any, auto_class: Any) -> Any:
    try:
        with torch.device("meta"):
            return auto_class.from_config(config, attn_implementation="eager").eval()
    except (ValueError, ImportError) as error:
        raise UnsupportedModel(f"{config.model_type}: {first_line(error)}") from error


def _layers(model: Any, *, causal: bool) -> tuple[list[AttentionLayer], tuple[str, ...]]:
    """The attention layers as the export will probe them; none, with a note, where the forward pass needs real numbers."""
    try:
        with torch.device("meta"):
            layers = probe(model, causal=causal)
    except UnsupportedModel as error:
        if isinstance(error.__cause__, RuntimeError):
            return [], ("which features reach its attention shows only with its weights: the export will look",)
        raise
    check_layers(model.config, layers, causal=causal)
    return layers, ()


def _matmul_elements(model: Any) -> int:
    """Elements of the matrices of linear layers, the language model's head among them, without embeddings that are looked up."""
    return sum(
        int(module.weight.numel())
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)
        and isinstance(getattr(module, "weight", None), torch.Tensor)
        and module.weight.ndim == 2
    )


def _kv_bytes(layers: list[AttentionLayer], config: Any) -> int:
    """Of one token in the fp32 cache; where the layers are not known, from the configuration."""
    if layers:
        elements = sum(layer.kv_num_heads * layer.head_size for layer in layers)
    else:
        text = config.get_text_config(decoder=True)
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        elements = text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * size
    return 2 * elements * _FP32_BYTES
