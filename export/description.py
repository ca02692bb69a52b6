"""What the manifest says about a model: its tokenizer, caches and graph tensors; and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer

from fastserve.export.attention import DOMAIN, NO_WINDOW, AttentionLayer
from fastserve.export.generation_settings import settings_not_applied
from fastserve.export.guards import experts
from fastserve.export.rotary import RotaryPlan, context_limit
from fastserve.manifest import CacheSpec, GraphSpec, LayerCacheSpec, TensorSpec, TokenizerSpec

TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

CACHE_DTYPE = "kv"
"""``TensorSpec.dtype`` of cache inputs: the element type that keys ``GraphSpec.files``."""

_DTYPE_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}


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
        eos_token_ids=eos_token_ids(getattr(model, "generation_config", None), tokenizer, model.config),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        chat_template=CHAT_TEMPLATE_FILE if template is not None else None,
        mask_token_id=tokenizer.mask_token_id,
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


def notes(model: Any, tokenizer: Any, code: bool, plan: RotaryPlan, longest_proven_window: int) -> tuple[str, ...]:
    """What the source says and the export does not do, for a person to read. ``code``: the checkpoint brings its own code.
    ``plan``: what contexts the export is valid for."""
    found = []
    if code:
        found.append(f"the code that comes with the checkpoint is not used, but transformers' {type(model).__name__}")
    if lost := settings_not_applied(model.generation_config):
        found.append(f"not applied, of generation_config.json: {', '.join(lost)}")
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        found.append(f"no chat template: none of {', '.join(sorted(template))} is called default")
    text = model.config.get_text_config(decoder=True)
    if text is not model.config:
        found.append("only its text part is exported: it reads no images, sounds or videos")
    longest, limit = text.max_position_embeddings, context_limit(model.config)
    if plan.max_model_len < longest:
        reason = "of --max-model-len"
        if plan.max_model_len == limit:
            reason = "of its first RoPE factors; --max-model-len can choose the others"
        found.append(f"longest context cut from {longest:,} to the {plan.max_model_len:,} tokens {reason}")
    if plan.beyond is not None:
        found.append(
            f"contexts of up to {plan.beyond:,} tokens get the RoPE factors of longer ones, where transformers has others: "
            "a request's tokens must not depend on how long it or its neighbours become"
        )
    if found_experts := experts(text):
        needed = getattr(text, "num_experts_per_tok", None) or "a few"
        found.append(f"every token is computed by all {found_experts[1]} experts, of which it needs {needed}")
    window = getattr(text, "sliding_window", None) or 0
    if longest_proven_window < window < plan.max_model_len:
        found.append(f"the proof does not reach beyond the sliding window of {window:,} tokens")
    return tuple(found)


def cache_spec(layers: list[AttentionLayer], layouts: tuple[str, str]) -> CacheSpec:
    """Cache shapes in the order of layer indices, which is the order of the graph's cache inputs. ``layouts``: of key and value
    caches."""
    by_index = sorted(layers, key=lambda layer: layer.index)
    return CacheSpec(tuple(map(_layer_cache, by_index)), *layouts)


def _layer_cache(layer: AttentionLayer) -> LayerCacheSpec:
    return LayerCacheSpec(layer.kv_num_heads, layer.head_size, layer.window if layer.window != NO_WINDOW else None)


def graph_spec(graph: ir.Graph, files: dict[str, str]) -> GraphSpec:
    """The graph's inputs and outputs. ``files``: KV element type -> file."""
    inputs, outputs = (tuple(_tensor(value) for value in values) for values in (graph.inputs, graph.outputs))
    return GraphSpec(files, inputs, outputs, reordered_bytes(graph))


def reordered_bytes(graph: ir.Graph) -> int:
    """Bytes of the constant matrices that operators of ONNX Runtime read, which may keep a copy in an order of their own: all but
    lookups in tables. Ours read weights as they are."""
    matrices = {
        value.name: value.const_value
        for node in graph.all_nodes()
        if node.domain != DOMAIN and node.op_type != "Gather"
        for value in node.inputs
        if value is not None and value.const_value is not None and value.const_value.shape.rank() > 1
    }
    return sum(matrix.nbytes for matrix in matrices.values())


def _tensor(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    is_cache = value.name.startswith(("key_cache.", "value_cache."))
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, CACHE_DTYPE if is_cache else _DTYPE_NAMES[value.dtype], shape)
