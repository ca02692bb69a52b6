"""Which code serves a model: one line for each task that config.pbtxt may name. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from fastserve.config import ENCODER_TASKS, GENERATION_TASK, TASK_PARAMETER
from fastserve.errors import ConfigError
from fastserve.triton.tensor_io import Contract, gaps


class Service(Protocol):
    """One loaded model instance. Made as ``Service(args, parameters)``: Triton's ``initialize`` arguments and the parameters
    of config.pbtxt; raises FastServeError when the model cannot be served."""

    def accept(self, request: Any) -> None:
        """Take one of Triton's requests and return at once; it is answered exactly once, later, through its response
        sender. Never raises."""

    def stop(self) -> None:
        """End every thread. Triton calls this when no request is in flight."""


class Entry(NamedTuple):
    """Where a task's service is, and the module whose function ``contract(parameters)`` gives its :class:`Contract`."""

    service_module: str
    service_class: str
    io_module: str


SERVICES: dict[str, Entry] = {
    GENERATION_TASK: Entry("fastserve.triton.generation_service", "GenerationService", "fastserve.triton.generation_io"),
    **dict.fromkeys(ENCODER_TASKS, Entry("fastserve.triton.encoder_service", "EncoderService", "fastserve.triton.encoder_io")),
    "python-function": Entry("fastserve.triton.function_service", "FunctionService", "fastserve.triton.function_io"),
}
"""By task. Modules are imported when a model needs them: Triton completes configurations in a process of its own."""


def string_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """``parameters`` of a model configuration (as Triton's JSON), by key."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def task_of(parameters: Mapping[str, str]) -> str:
    """The task that config.pbtxt names, text-generation when it names none. Raises ConfigError for an unknown one."""
    task = parameters.get(TASK_PARAMETER, GENERATION_TASK)
    if task not in SERVICES:
        raise ConfigError(f"{TASK_PARAMETER}: got {task!r} in config.pbtxt, allowed: {', '.join(SERVICES)}")
    return task


def contract_of(parameters: Mapping[str, str]) -> Contract:
    """What a model with these parameters declares. Raises ConfigError."""
    contract: Contract = importlib.import_module(SERVICES[task_of(parameters)].io_module).contract(parameters)
    return contract


def check_complete(config: Mapping[str, Any]) -> None:
    """Refuse a model configuration (Triton's JSON) that was not completed. Raises ConfigError."""
    if missing := gaps(config, contract_of(string_parameters(config))):
        raise ConfigError(
            f"config.pbtxt: lacks {', '.join(missing)}; allowed: what `fastserve export` writes, or less where Triton completes "
            "configurations, which --disable-auto-complete-config forbids"
        )


def load_service(args: dict[str, str], parameters: Mapping[str, str]) -> Service:
    """Load a model instance, warm it up, start its threads. Raises FastServeError."""
    entry = SERVICES[task_of(parameters)]
    service: Service = getattr(importlib.import_module(entry.service_module), entry.service_class)(args, parameters)
    return service
