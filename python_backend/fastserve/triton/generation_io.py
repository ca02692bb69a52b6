"""The tensors of a text-generation model, once: export writes them to config.pbtxt, the backend auto-completes and parses them.

Names, types and shapes are those of Triton's vLLM backend; ``input_ids``, ``return_output_ids`` and ``output_ids`` are ours.
Nothing of Triton is imported here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastserve.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class TensorIO:
    """A model input or output as config.pbtxt knows it. ``data_type`` includes the TYPE_ prefix."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


TEXT_GENERATION_INPUTS: tuple[TensorIO, ...] = (
    TensorIO("text_input", "TYPE_STRING", (1,), optional=True),
    TensorIO("input_ids", "TYPE_INT64", (-1,), optional=True),
    TensorIO("stream", "TYPE_BOOL", (1,), optional=True),
    TensorIO("sampling_parameters", "TYPE_STRING", (1,), optional=True),
    TensorIO("exclude_input_in_output", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_finish_reason", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_cumulative_logprob", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_logprobs", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_num_input_tokens", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_num_output_tokens", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_output_ids", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_timing", "TYPE_BOOL", (1,), optional=True),
)

TEXT_GENERATION_OUTPUTS: tuple[TensorIO, ...] = (
    TensorIO("text_output", "TYPE_STRING", (-1,)),
    TensorIO("finish_reason", "TYPE_STRING", (-1,)),
    TensorIO("cumulative_logprob", "TYPE_FP32", (-1,)),
    TensorIO("logprobs", "TYPE_STRING", (-1,)),
    TensorIO("num_input_tokens", "TYPE_UINT32", (1,)),
    TensorIO("num_output_tokens", "TYPE_UINT32", (-1,)),
    TensorIO("output_ids", "TYPE_INT64", (-1,)),
)


def missing_entries(given: Sequence[Mapping[str, Any]], contract: Sequence[TensorIO], *, kind: str) -> list[dict[str, Any]]:
    """What a model configuration has to be completed with, as its entries.

    ``given``: its inputs or outputs (``kind``). Raises ConfigError for an entry that is not the contract's.
    """
    specs = {spec.name: spec for spec in contract}
    for entry in given:
        spec = specs.get(entry["name"])
        if spec is None:
            raise ConfigError(f"{kind} {entry['name']}: unknown in config.pbtxt, allowed: {', '.join(specs)}")
        declared = entry["data_type"], tuple(int(size) for size in entry["dims"])
        if declared != (spec.data_type, spec.dims):
            shown = f"{declared[0]} {list(declared[1])}"
            raise ConfigError(f"{kind} {spec.name}: got {shown} in config.pbtxt, allowed: {spec.data_type} {list(spec.dims)}")
        if spec.optional and not entry.get("optional", False):
            raise ConfigError(f"{kind} {spec.name}: got optional: false in config.pbtxt, allowed: optional: true")
    present = {entry["name"] for entry in given}
    optional = {True: {"optional": True}, False: {}}
    return [
        {"name": spec.name, "data_type": spec.data_type, "dims": list(spec.dims)} | optional[spec.optional]
        for spec in contract
        if spec.name not in present
    ]
