"""The contract of a model that is a Python function: its tensors, its settings in config.pbtxt, and both directions of them.

Nothing of Triton is imported here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.config import TASK_PARAMETER, EncoderConfig, parse_config
from fastserve.errors import ConfigError, InvalidRequest
from fastserve.tasks.sampling_parameters import IGNORED, PARAMETERS
from fastserve.triton.tensor_io import Contract, TensorIO
from fastserve.triton.text_tensors import decode_text

FUNCTION_TASK = "python-function"
FUNCTION_INPUTS = (TensorIO("text_input", "TYPE_STRING", (1,)),)
FUNCTION_OUTPUTS = (TensorIO("result", "TYPE_STRING", (1,)),)

_DEADLINE = "deadline_ms"
_OWN_KEYS = ("socket_directory", "takes_parameters")
_QUEUE_KEYS = ("max_queue_size", "default_deadline_ms")
"""These mean what they mean for encoders."""


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionSettings:
    """``parameters`` of config.pbtxt. ``socket_directory``: where the function's process listens."""

    socket_directory: Path
    takes_parameters: bool
    max_queue_size: int
    default_deadline_ms: int

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> FunctionSettings:
        """Raises :class:`ConfigError` naming the key."""
        for key in parameters:
            if key not in (TASK_PARAMETER, *_OWN_KEYS, *_QUEUE_KEYS):
                raise ConfigError(f"{key}: unknown key in parameters of a function, allowed: {', '.join(_QUEUE_KEYS)}")
        for key in _OWN_KEYS:
            if key not in parameters:
                raise ConfigError(f"{key}: missing in config.pbtxt parameters; FastServeServer writes it")
        limits = parse_config(EncoderConfig, {key: parameters[key] for key in _QUEUE_KEYS if key in parameters})
        takes_parameters = parameters["takes_parameters"] == "true"
        directory = Path(parameters["socket_directory"])
        return cls(directory, takes_parameters, limits.max_queue_size, limits.default_deadline_ms)

    def as_parameters(self) -> dict[str, str]:
        """What :meth:`parse` reads, and the task."""
        return {
            TASK_PARAMETER: FUNCTION_TASK,
            "socket_directory": str(self.socket_directory),
            "takes_parameters": "true" if self.takes_parameters else "false",
            "max_queue_size": str(self.max_queue_size),
            "default_deadline_ms": str(self.default_deadline_ms),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionInput:
    """What one client sent: B texts (the batch dimension of its tensor). ``deadline_ms``: 0 is none."""

    texts: tuple[str, ...]
    parameters: Mapping[str, Any]
    deadline_ms: int


def contract(parameters: Mapping[str, str]) -> Contract:
    """``parameters``: of config.pbtxt."""
    del parameters  # every function has the same
    return Contract(FUNCTION_INPUTS, FUNCTION_OUTPUTS, max_batch_size=1)


def parse_function_input(
    tensors: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, Any], settings: FunctionSettings
) -> FunctionInput:
    """``tensors``: text_input [B, 1]. ``parameters``: Triton's request parameters. Raises InvalidRequest naming the field."""
    rows = tensors["text_input"]
    if rows.ndim == 0 or rows.size != rows.shape[0]:
        raise InvalidRequest("text_input", f"shape {list(rows.shape)}", "one text in each row")
    deadline_ms = settings.default_deadline_ms
    own: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == _DEADLINE:
            deadline_ms = _read_deadline(value)
        elif name in IGNORED:
            continue
        elif not settings.takes_parameters:
            raise InvalidRequest(name, value, f"{_DEADLINE}; this model's function takes no parameters")
        else:
            own[name] = value
    return FunctionInput(tuple(map(_text, rows.reshape(-1))), own, deadline_ms)


def encode_results(results: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """``results``: B JSON texts. The output tensor: result [B, 1]."""
    return {"result": np.array([[text.encode()] for text in results], np.object_)}


def render_function_config(batch_size: int, queue_delay_us: int, settings: FunctionSettings) -> str:
    """The text of config.pbtxt: Triton batches requests up to ``batch_size`` texts and waits ``queue_delay_us`` for them."""
    entries = [
        f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"
        for key, value in settings.as_parameters().items()
    ]
    tensors = [
        f'{kind} [ {{ name: "{tensor.name}" data_type: {tensor.data_type} dims: [ {tensor.dims[0]} ] }} ]'
        for kind, (tensor,) in (("input", FUNCTION_INPUTS), ("output", FUNCTION_OUTPUTS))
    ]
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {queue_delay_us} }}"
    instances = "instance_group [ { kind: KIND_CPU count: 1 } ]"
    return "\n".join(['backend: "fastserve"', f"max_batch_size: {batch_size}", batching, *tensors, instances, *entries, ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _read_deadline(value: Any) -> int:
    parameter = PARAMETERS[_DEADLINE]
    try:
        return int(parameter.read(value))
    except (ValueError, OverflowError):
        raise InvalidRequest(_DEADLINE, value, parameter.allowed) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else decode_text("text_input", bytes(value))
