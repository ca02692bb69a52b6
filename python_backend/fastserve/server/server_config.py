"""The dictionary a user gives :class:`FastServeServer`, checked key by key: one frozen value."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastserve.errors import ConfigError, shorten
from fastserve.export.options import DTYPES, MODEL_NAME, MODEL_NAME_ALLOWED

LARGEST_PORT = 65535
EXPORT_KEYS = ("max_length", "stride", "pooling", "aggregation_strategy", "markers")
"""Options of ``fastserve export`` that are no keys of their own."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Key:
    """``read`` turns what was given into the field's value; ValueError or TypeError when it is not ``allowed``."""

    read: Callable[[Any], Any]
    allowed: str


def _whole_number(low: int, high: int) -> _Key:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return _Key(read, f"a whole number from {low} to {high}")


def _matching(pattern: re.Pattern[str], allowed: str) -> _Key:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return _Key(read, allowed)


def _path(value: Any) -> Path:
    if not value or not isinstance(value, (str, os.PathLike)):
        raise ValueError
    return Path(value).expanduser()


def _settings(value: Any) -> dict[str, str]:
    """Engine settings as config.pbtxt has them: texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    if not all(isinstance(setting, (str, int, float)) and not isinstance(setting, bool) for setting in value.values()):
        raise ValueError
    return {key: str(setting) for key, setting in value.items()}


def _export_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not set(value) <= set(EXPORT_KEYS):
        raise ValueError
    return {key: tuple(option) if isinstance(option, list) else option for key, option in value.items()}


def _anything(value: Any) -> Any:
    return value


_PORT = _whole_number(0, LARGEST_PORT)
_PATH = _Key(_path, "a path")

_KEYS: dict[str, _Key] = {
    "model_path": _Key(_anything, "a path or a hub id"),
    "name": _matching(MODEL_NAME, MODEL_NAME_ALLOWED),
    "task": _matching(re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"), 'the name of a task, such as "token-classification"'),
    "host": _matching(re.compile(r"\S+"), "a name or address of this machine"),
    "port": _PORT,
    "grpc_port": _PORT,
    "metrics_port": _PORT,
    "batch_size": _whole_number(1, 4096),
    "num_workers": _whole_number(1, 256),
    "dtype": _matching(re.compile("|".join(map(re.escape, DTYPES))), " or ".join(DTYPES)),
    "export": _Key(_export_options, f"options of the export by name: {', '.join(EXPORT_KEYS)}"),
    "tokenizer": _Key(_anything, "a tokenizer or its path"),
    "model_repository": _PATH,
    "log_file": _PATH,
    "parameters": _Key(_settings, "engine settings, numbers or texts by name"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the keys mean stands in the README. None: not given."""

    model_path: Any = None
    name: str | None = None
    task: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    metrics_port: int | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    dtype: str | None = None
    export: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Any = None
    model_repository: Path | None = None
    log_file: Path | None = None
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None) -> ServerConfig:
        """Raises :class:`ConfigError` naming the key, what was given and what is allowed. A value of None is as if not given."""
        if config is None:
            config = {}
        if not isinstance(config, Mapping):
            raise ConfigError(f"config: got {shorten(repr(config))}, allowed: a dictionary with the keys {', '.join(_KEYS)}")
        values = {}
        for name, value in config.items():
            if name not in _KEYS:
                raise ConfigError(f"{shorten(str(name))}: unknown key of config, allowed: {', '.join(_KEYS)}")
            if value is None:
                continue
            try:
                values[name] = _KEYS[name].read(value)
            except (ValueError, TypeError):
                raise ConfigError(f"{name}: got {shorten(repr(value))}, allowed: {_KEYS[name].allowed}") from None
        return cls(**values)

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise :class:`ConfigError` when one of the keys ``names`` was given."""
        for name in names:
            if getattr(self, name):
                raise ConfigError(f"{name}: got {shorten(repr(getattr(self, name)))}, allowed: nothing, {reason}")
