"""Renders config.pbtxt of a text-generation model: the contract's tensors, and every engine setting ready to uncomment."""

from __future__ import annotations

import dataclasses

from fastserve.config import EngineConfig
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS, TensorIO


def render_config_pbtxt() -> str:
    """The text of config.pbtxt. Triton takes the model's name from its folder."""
    return "\n".join(
        [
            "# Written by `fastserve export`; yours to edit.",
            'backend: "fastserve"',
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            "",
            f"input [\n{_tensors(TEXT_GENERATION_INPUTS)}\n]",
            f"output [\n{_tensors(TEXT_GENERATION_OUTPUTS)}\n]",
            "",
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            "",
            "# Engine settings with their defaults. To change one, uncomment its line.",
            *(_parameter(field) for field in dataclasses.fields(EngineConfig)),
            "",
        ]
    )


def _tensors(tensors: tuple[TensorIO, ...]) -> str:
    return ",\n".join(f"  {{ {_tensor(tensor)} }}" for tensor in tensors)


def _tensor(tensor: TensorIO) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f'name: "{tensor.name}" data_type: {tensor.data_type} dims: [ {dims} ]' + (
        " optional: true" if tensor.optional else ""
    )


def _parameter(field: dataclasses.Field[object]) -> str:
    return f'# {field.metadata["help"]}\n# parameters {{ key: "{field.name}" value: {{ string_value: "{field.default}" }} }}'
