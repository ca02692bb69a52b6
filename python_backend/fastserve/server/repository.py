"""The private model repository that a server serves: one model, exported or a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastserve.config import GENERATION_TASK, TASK_PARAMETER, EncoderConfig, EngineConfig, parse_config
from fastserve.errors import ConfigError, ToolError
from fastserve.export.options import CONFIG_FILE
from fastserve.tools.client import CLIENT_COMMAND
from fastserve.tools.model_config import parse_model_config

_BARE_CONFIG = 'backend: "fastserve"\n'


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What differs from the exported config.pbtxt. ``num_instances``: processes that run the model; None: as it says."""

    batch_size: int | None = None
    num_instances: int | None = None
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)


def engine_parameters(task: str, changes: Changes) -> dict[str, str]:
    """The engine settings that differ from the exported ones. Raises :class:`ConfigError` unless they are settings of the
    engine that serves ``task``."""
    parameters = dict(changes.parameters)
    if TASK_PARAMETER in parameters:
        raise ConfigError(f"parameters: got the key {TASK_PARAMETER!r}, allowed: config['task'], where the model is exported")
    if task != GENERATION_TASK:
        parse_config(EncoderConfig, parameters)
        return parameters
    if changes.batch_size is not None:
        parameters.setdefault("max_num_seqs", str(changes.batch_size))
    parse_config(EngineConfig, parameters)
    return parameters


def lay_out_export(repository: Path, name: str, version: Path, task: str, changes: Changes) -> None:
    """``repository/name``: a link to the exported folder ``version`` and its config.pbtxt with ``changes``.

    The export itself stays as it is. Raises :class:`ConfigError` and, when config.pbtxt cannot be read, :class:`ToolError`.
    """
    given = version.parent / CONFIG_FILE
    text = given.read_text(encoding="utf-8") if given.is_file() else _BARE_CONFIG
    entry = repository / name
    entry.mkdir(parents=True)
    (entry / CONFIG_FILE).write_text(_changed(text, given, task, changes), encoding="utf-8")
    number = version.name if version.name.isdecimal() else "1"
    (entry / number).symlink_to(version)


def lay_out_function(repository: Path, name: str, config: str) -> None:
    """``repository/name``: nothing but ``config``, the text of config.pbtxt, and an empty version."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / CONFIG_FILE).write_text(config, encoding="utf-8")


def _changed(text: str, source: Path, task: str, changes: Changes) -> str:
    config = _parsed(text, source)
    config.ClearField("name")  # the folder's
    if changes.batch_size is not None and task != GENERATION_TASK:
        config.max_batch_size = changes.batch_size
        fitting = [size for size in config.dynamic_batching.preferred_batch_size if size <= changes.batch_size]
        config.dynamic_batching.preferred_batch_size[:] = fitting
    if changes.num_instances is not None:
        del config.instance_group[:]
        config.instance_group.add(kind="KIND_CPU", count=changes.num_instances)
    if task != GENERATION_TASK:
        config.parameters[TASK_PARAMETER].string_value = task
    for key, value in engine_parameters(task, changes).items():
        config.parameters[key].string_value = value
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def _parsed(text: str, source: Path) -> Any:
    """Triton's own ModelConfig."""
    try:
        return parse_model_config(text)
    except ImportError as error:
        raise ToolError(f"{error.name} is not installed: {CLIENT_COMMAND}") from None
    except ValueError as error:
        raise ToolError(f"{source}: is no configuration of Triton ({error})") from None
