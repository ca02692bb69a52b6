"""The engine's configuration: one frozen value, parsed once from ``parameters`` of config.pbtxt.

Every value arrives from Triton as a string. An unknown key or a value out of range is a :class:`ConfigError` that names
the key, the value and what is allowed, so that a typo never silently means "default".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastserve.errors import ConfigError

INNER_POLICIES = ("fcfs", "skip_join_mlfq", "gittins", "vtc")
POLICIES = ("auto", *INNER_POLICIES, "priority")
PREEMPTION = ("proactive", "reactive", "recompute")
KV_CACHE_DTYPES = ("fp32", "fp16", "int8")

PREFIX_CACHE = ("on", "per_tenant", "off")
SHARE_WEIGHTS = ("auto", "on", "off")

TASK_PARAMETER = "task"
"""Key of config.pbtxt parameters that says which contract the model has; text-generation when it is absent."""
GENERATION_TASK = "text-generation"
ENCODER_TASKS = (
    "text-classification",
    "token-classification",
    "relation-extraction",
    "question-answering",
    "feature-extraction",
    "fill-mask",
    "reranking",
    "zero-shot-classification",
)


def _field(default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


# Settings that every engine has.


def _max_queue_size() -> Any:
    return _field(1024, "requests accepted but not finished; more are refused UNAVAILABLE", low=1, high=1_000_000)


def _num_threads() -> Any:
    return _field(0, "threads of one run; 0: the cores divided among the model's instances", low=0, high=1024)


def _share_weights() -> Any:
    return _field(
        "auto",
        "weights in memory once for all processes of the machine; auto: when there are several instances",
        choices=SHARE_WEIGHTS,
    )


def _default_deadline_ms() -> Any:
    return _field(0, "deadline of requests that bring none, milliseconds; 0: none", low=0, high=10**10)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one model instance is served. 0 means "chosen by the engine" where the help text says so."""

    policy: str = _field("auto", "order in which requests are served", choices=POLICIES)
    priority_inner_policy: str = _field("fcfs", "order inside a class when policy is priority", choices=INNER_POLICIES)
    mlfq_starvation_ms: int = _field(
        300, "milliseconds without a step after which skip_join_mlfq promotes a sequence to the top", low=1, high=10**9
    )
    max_num_seqs: int = _field(
        32, "sequences in one iteration; 0: chosen from what steps cost when the model is loaded", low=0, high=4096
    )
    max_batched_tokens: int = _field(
        256, "tokens in one iteration (prefill chunks + decodes); 0: chosen likewise", low=0, high=65536
    )
    max_queue_size: int = _max_queue_size()
    max_queue_size_per_tenant: int = _field(
        0, "of these, requests of one tenant (those without a name are one); 0: as many as of all", low=0, high=1_000_000
    )
    max_model_len: int = _field(0, "longest prompt + output, tokens; 0: the model's own limit", low=0, high=10_000_000)
    block_size: int = _field(16, "tokens in one KV block, a multiple of 16", low=16, high=256)
    kv_cache_bytes: int = _field(0, "size of the KV pool; 0: kv_cache_memory_fraction of the free memory", low=0)
    kv_cache_memory_fraction: float = _field(
        0.4, "share of the free memory the KV pool may take when kv_cache_bytes is 0", low=0.01, high=0.95
    )
    kv_cache_dtype: str = _field("fp32", "element type of the KV pool", choices=KV_CACHE_DTYPES)
    prefix_cache: str = _field(
        "on",
        "beginnings of prompts that were computed before are not computed again; per_tenant: only the tenant's own",
        choices=PREFIX_CACHE,
    )
    preemption: str = _field(
        "proactive",
        "sequences that the KV pool has no room for are swapped out, ahead of need (proactive) or when they are in the way "
        "(reactive), or are computed again (recompute)",
        choices=PREEMPTION,
    )
    swap_space_bytes: int = _field(
        0, "memory for swapped sequences; 0: as much as the KV pool has, within kv_cache_memory_fraction", low=0
    )
    swap_file_bytes: int = _field(0, "size of a file for those that find no room there; 0: none", low=0)
    swap_directory: str = _field("", "folder of that file; empty: FastServe's cache folder")
    max_stream_delay_ms: int = _field(
        100,
        "milliseconds that tokens of a stream may wait for the next ones, to be sent together, while so many streams are open "
        "that sending each token alone would take cores from the model; 0: none",
        low=0,
        high=10_000,
    )
    num_threads: int = _num_threads()
    spinning: str = _field(
        "on", "threads of a run that wait burn their cores for a moment before they sleep", choices=("on", "off")
    )
    share_weights: str = _share_weights()
    default_deadline_ms: int = _default_deadline_ms()

    def __post_init__(self) -> None:
        _check_all(self)
        if self.block_size % 16:
            raise ConfigError(f"block_size: got {self.block_size}, allowed: a multiple of 16 from 16 to 256")
        if self.swap_directory and not Path(self.swap_directory).is_absolute():
            raise ConfigError(f"swap_directory: got {self.swap_directory!r}, allowed: an absolute path, or nothing")
        if 0 < self.max_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_batched_tokens: got {self.max_batched_tokens}, allowed: at least max_num_seqs ({self.max_num_seqs}), "
                "so that every running sequence can take a step in each iteration"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderConfig:
    """How one instance of an encoder model is served."""

    max_num_seqs: int = _field(128, "sequences in one run", low=1, high=4096)
    max_batched_tokens: int = _field(1024, "tokens in one run; a longer sequence runs alone", low=1, high=65536)
    max_queue_size: int = _max_queue_size()
    num_threads: int = _num_threads()
    share_weights: str = _share_weights()
    default_deadline_ms: int = _default_deadline_ms()

    def __post_init__(self) -> None:
        _check_all(self)


Config = TypeVar("Config", EngineConfig, EncoderConfig)


def parse_config(cls: type[Config], parameters: Mapping[str, str]) -> Config:
    """``cls`` from string parameters; :data:`TASK_PARAMETER` is left to the backend. Raises :class:`ConfigError`."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, text in parameters.items():
        if key == TASK_PARAMETER:
            continue
        if key not in fields:
            raise ConfigError(f"{key}: unknown key in config.pbtxt parameters, allowed: {', '.join(sorted(fields))}")
        values[key] = _parse(fields[key], text)
    return cls(**values)


def _check_all(config: EngineConfig | EncoderConfig) -> None:
    for field in dataclasses.fields(config):
        _check(field, getattr(config, field.name))


def _allowed(field: dataclasses.Field[Any]) -> str:
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if choices:
        return " or ".join(choices)
    kind = "a whole number" if isinstance(field.default, int) else "a number"
    return f"{kind} from {low} to {high}" if high is not None else f"{kind}, at least {low}"


def _parse(field: dataclasses.Field[Any], text: str) -> Any:
    kind: type = type(field.default)
    try:
        return kind(text.strip())
    except ValueError:
        raise ConfigError(f"{field.name}: got {text!r}, allowed: {_allowed(field)}") from None


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    good = value in choices if choices else (low is None or value >= low) and (high is None or value <= high)
    if not good:  # also NaN: every comparison is false
        raise ConfigError(f"{field.name}: got {value!r}, allowed: {_allowed(field)}")
