"""What the manifest says about a model: its tokenizer, sampling defaults, caches and graph tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer

from fastserve.export.attention import AttentionLayer
from fastserve.manifest import CacheSpec, GraphSpec, LayerCacheSpec, TensorSpec, TokenizerSpec

TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

CACHE_DTYPE = "kv"
"""``TensorSpec.dtype`` of cache inputs: the element type that keys ``GraphSpec.files``."""

_DTYPE_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}

_GENERATION_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""generation_config's names -> the sampling parameters of the serving contract."""


def write_tokenizer(tokenizer: Any, model: Any, directory: Path) -> TokenizerSpec:
    """Write tokenizer.json (without padding and truncation, which are the server's to decide) and the chat template."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(directory / TOKENIZER_FILE))
    template = chat_template(tokenizer)
    if template is not None:
        (directory / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    return TokenizerSpec(
        file=TOKENIZER_FILE,
        eos_token_ids=eos_token_ids(model.generation_config, tokenizer, model.config),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        chat_template=CHAT_TEMPLATE_FILE if template is not None else None,
        special_tokens={name: str(text) for name, text in tokenizer.special_tokens_map.items() if not isinstance(text, list)},
    )


def chat_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template; of several named ones the one called "default"."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def eos_token_ids(*holders: Any) -> tuple[int, ...]:
    """Every id that any of ``holders`` (generation config, tokenizer, config) calls the end of a text, ascending."""
    ids: set[int] = set()
    for holder in holders:
        declared = getattr(holder, "eos_token_id", None)
        ids.update(declared if isinstance(declared, (list, tuple)) else [] if declared is None else [declared])
    return tuple(sorted(int(i) for i in ids))


def generation_defaults(generation_config: Any) -> dict[str, float]:
    """Sampling defaults that the model's authors set; keys they left alone are absent."""
    found = {name: getattr(generation_config, key, None) for key, name in _GENERATION_KEYS.items()}
    return {name: value for name, value in found.items() if value is not None}


def cache_spec(layers: list[AttentionLayer]) -> CacheSpec:
    """Cache shapes in the order of layer indices, which is the order of the graph's cache inputs."""
    by_index = sorted(layers, key=lambda layer: layer.index)
    return CacheSpec(tuple(LayerCacheSpec(layer.kv_num_heads, layer.head_size) for layer in by_index))


def graph_spec(graph: ir.Graph, files: dict[str, str]) -> GraphSpec:
    """The graph's inputs and outputs. ``files``: KV element type -> file."""
    return GraphSpec(files, tuple(_tensor(value) for value in graph.inputs), tuple(_tensor(value) for value in graph.outputs))


def _tensor(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    is_cache = value.name.startswith(("key_cache.", "value_cache."))
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, CACHE_DTYPE if is_cache else _DTYPE_NAMES[value.dtype], shape)
