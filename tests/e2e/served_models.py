"""The models the end-to-end tests serve: tiny random ones, each under several engine settings, in one repository."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from tests.synthetic.tiny_models import TINY_CONFIGS, llama_config, save_model

TINY_BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 4
"""KV bytes of one block of the tiny Llama: layers, key and value, heads, head size, tokens, fp32."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model's folder in the repository. ``source``: which random model; ``settings``: its engine parameters."""

    source: str
    settings: dict[str, str]
    max_batch_size: int = 0
    """Above 0: tensors have a batch dimension, and Triton's dynamic batcher stands in front."""


CHUNKED = {"max_batched_tokens": "48", "max_num_seqs": "16"}
"""Prompts of up to 200 tokens come in several chunks beside decodes."""

SMALL_POOL = {"kv_cache_bytes": str(24 * TINY_BLOCK_BYTES)}

SERVED: dict[str, ServedModel] = {
    "llama": ServedModel("llama", CHUNKED),
    "gpt2": ServedModel("gpt2", CHUNKED),
    "qwen2": ServedModel("qwen2", CHUNKED),
    "qwen3": ServedModel("qwen3", CHUNKED),
    "llama-batched": ServedModel("llama", CHUNKED, max_batch_size=8),
    "llama-fp16-cache": ServedModel("llama", CHUNKED | {"kv_cache_dtype": "fp16"}),
    "llama-int8-cache": ServedModel("llama", CHUNKED | {"kv_cache_dtype": "int8"}),
    "llama-small-pool": ServedModel("llama", CHUNKED | SMALL_POOL | {"preemption": "recompute"}),
    "llama-swap": ServedModel("llama", CHUNKED | SMALL_POOL | {"policy": "skip_join_mlfq"}),
    "llama-swap-file": ServedModel(
        "llama",
        CHUNKED
        | SMALL_POOL
        | {
            "preemption": "reactive",
            "swap_space_bytes": str(4 * TINY_BLOCK_BYTES),
            "swap_file_bytes": str(96 * TINY_BLOCK_BYTES),
        },
    ),
    "llama-mlfq": ServedModel("llama", CHUNKED | SMALL_POOL | {"policy": "skip_join_mlfq", "preemption": "recompute"}),
    "llama-vtc": ServedModel("llama", CHUNKED | {"policy": "vtc"}),
    "llama-priority": ServedModel("llama", CHUNKED | {"policy": "priority", "priority_inner_policy": "gittins"}),
    "llama-fcfs": ServedModel("llama", CHUNKED | {"policy": "fcfs", "kv_cache_bytes": str(24 * TINY_BLOCK_BYTES)}),
    "llama-long": ServedModel("llama-long", {"kv_cache_bytes": str(2048 * TINY_BLOCK_BYTES)}),
    "llama-small-queue": ServedModel("llama-long", {"max_queue_size": "3", "max_num_seqs": "1"}),
    "llama-tiny-pool": ServedModel("llama-long", {"kv_cache_bytes": str(24 * TINY_BLOCK_BYTES)}),
}


def save_sources(directory: Path) -> dict[str, Path]:
    """Save every random model as a Hugging Face folder; by the names :class:`ServedModel` uses."""
    sources = {name: save_model(TINY_CONFIGS[name](), directory / name) for name in ("llama", "gpt2", "qwen2", "qwen3")}
    sources["llama-long"] = save_model(llama_config(max_position_embeddings=16384), directory / "llama-long")
    return sources


def build_repository(sources: dict[str, Path], exports: Path, repository: Path) -> Path:
    """Export each source once and lay out every model of :data:`SERVED` with its own config.pbtxt."""
    for name, source in sources.items():
        export_model(str(source), ExportOptions(output=exports, name=name))
    for name, model in SERVED.items():
        shutil.copytree(exports / model.source, repository / name)
        config = repository / name / "config.pbtxt"
        text = config.read_text().replace("max_batch_size: 0", f"max_batch_size: {model.max_batch_size}")
        for key, value in model.settings.items():
            text += f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        config.write_text(text)
    return repository
