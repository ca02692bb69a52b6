"""Renders config.pbtxt: the contract's tensors, and every engine setting ready to uncomment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fastserve.config import TASK_PARAMETER, EncoderConfig, EngineConfig, parse_config
from fastserve.export.text_format import Message
from fastserve.manifest import CPU, CUDA
from fastserve.triton.encoder_io import DEFAULT_MAX_BATCH_SIZE, encoder_inputs, encoder_outputs
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS
from fastserve.triton.tensor_io import TensorIO

_BACKEND = "fastserve"
_HEAD = ("# Written by `fastserve export`; yours to edit.", f'backend: "{_BACKEND}"')
_INSTANCES = "instance_group [ { kind: KIND_CPU count: 1 } ]"
_GPU_INSTANCES = "instance_group [ { kind: KIND_GPU count: 1 gpus: [ 0 ] } ]"
_GPU_SETTINGS: Mapping[str, tuple[object, str]] = {
    "block_size": (
        256,
        "a multiple of 256, so that FlashAttention serves every head size; smaller blocks fall back to slower kernels",
    ),
    "kv_cache_dtype": ("fp16", "what the graph was exported for"),
    "kv_cache_bytes": (4 << 30, "of the GPU's memory; it is not guessed what of it is free"),
}
"""Engine settings of a model for CUDA that are not the defaults: value, reason."""
_QUANTIZED_SETTINGS: Mapping[str, Mapping[str, tuple[object, str]]] = {
    dtype: {
        "kv_cache_dtype": (
            "int8",
            f"as the {kind} are: 27 % of fp32's memory at head size 64, and of what a token reads of its context",
        ),
    }
    for dtype, kind in (("int8", "weights"), ("int4", "activations"))
}
"""Likewise of models for CPUs, by their dtype."""


def kv_cache_dtype_of(device: str, dtype: str) -> str:
    """The element type of the KV cache that :func:`render_config_pbtxt` asks for."""
    return str(_settings(device, dtype).get("kv_cache_dtype", (EngineConfig().kv_cache_dtype, ""))[0])


def kv_cache_dtype_in(config: Message) -> str:
    """What a config.pbtxt asks for. Raises ConfigError for what is no type of a cache."""
    entries = [entry for entry in config.messages("parameters") if entry.texts("key")[-1:] == ["kv_cache_dtype"]]
    values = entries[-1].messages("value") if entries else []
    if not values:
        return EngineConfig().kv_cache_dtype
    stated = "".join(values[-1].texts("string_value")[-1:])  # of what stands twice, the last counts
    return parse_config(EngineConfig, {"kv_cache_dtype": stated}).kv_cache_dtype


def is_ours(config: Message) -> bool:
    """Whether a config.pbtxt is of a model for our backend."""
    return config.texts("backend")[-1:] == [_BACKEND]


def is_as_rendered(text: str) -> bool:
    """Whether a text-generation model's config.pbtxt is what an export has written, and nobody's own."""
    exported = ((CPU, "fp32"), *((CPU, dtype) for dtype in _QUANTIZED_SETTINGS), (CUDA, "fp16"))
    return text in {render_config_pbtxt(device, dtype) for device, dtype in exported}


def _settings(device: str, dtype: str) -> Mapping[str, tuple[object, str]]:
    return _GPU_SETTINGS if device == CUDA else _QUANTIZED_SETTINGS.get(dtype, {})


def render_config_pbtxt(device: str = CPU, dtype: str = "fp32") -> str:
    """The text of a text-generation model's config.pbtxt. Triton takes the model's name from its folder."""
    settings = _settings(device, dtype)
    return "\n".join(
        [
            *_HEAD,
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            "",
            f"input [\n{_tensors(TEXT_GENERATION_INPUTS)}\n]",
            f"output [\n{_tensors(TEXT_GENERATION_OUTPUTS)}\n]",
            "",
            _GPU_INSTANCES if device == CUDA else _INSTANCES,
            "",
            *(line for key, (value, reason) in settings.items() for line in (f"# {key}: {reason}", _parameter(key, value))),
            "# Engine settings with their defaults. To change one, uncomment its line.",
            *(_setting(field) for field in dataclasses.fields(EngineConfig) if field.name not in settings),
            "",
        ]
    )


def render_encoder_config_pbtxt(task: str, max_batched_tokens: int, throughputs: Mapping[int, float]) -> str:
    """The text of an encoder's config.pbtxt. ``throughputs``: tokens per second that were measured, by tokens in a run;
    none when the model's sequences run one at a time."""
    others = [field for field in dataclasses.fields(EncoderConfig) if field.name != "max_batched_tokens"]
    return "\n".join(
        [
            *_HEAD,
            f"max_batch_size: {DEFAULT_MAX_BATCH_SIZE}",
            "# No queue delay: while a run is under way, requests gather in the engine; waiting before would only add to it.",
            "dynamic_batching { }",
            "",
            f"input [\n{_tensors(encoder_inputs(task))}\n]",
            f"output [\n{_tensors(encoder_outputs(task))}\n]",
            "",
            _INSTANCES,
            "",
            _parameter(TASK_PARAMETER, task),
            "",
            *_measured(throughputs),
            _parameter("max_batched_tokens", max_batched_tokens),
            "",
            "# Other engine settings with their defaults. To change one, uncomment its line.",
            *map(_setting, others),
            "",
        ]
    )


def _measured(throughputs: Mapping[int, float]) -> list[str]:
    if not throughputs:
        return ["# Tokens in one run. The sequences of this model run one at a time, however long they are."]
    return [
        "# Tokens in one run; a longer sequence runs alone. Measured by the export, on sentences of about 25 tokens:",
        "#   tokens   tokens/s",
        *(f"#   {size:6}   {throughput:8.0f}" for size, throughput in throughputs.items()),
    ]


def _tensors(tensors: tuple[TensorIO, ...]) -> str:
    return ",\n".join(f"  {{ {_tensor(tensor)} }}" for tensor in tensors)


def _tensor(tensor: TensorIO) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f'name: "{tensor.name}" data_type: {tensor.data_type} dims: [ {dims} ]' + (
        " optional: true" if tensor.optional else ""
    )


def _setting(field: dataclasses.Field[object]) -> str:
    return f"# {field.metadata['help']}\n# {_parameter(field.name, field.default)}"


def _parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
