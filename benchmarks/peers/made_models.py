"""Models of a known shape with random weights, as .gguf files: speed does not depend on what a model has learned.

The vocabulary is another file's, filled up to the size that the shape has.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter, TokenType

Size = tuple[int, ...]
SEED = 0
SPREAD = 0.02
"""Standard deviation of weights, as most models are initialised."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a decoder. ``architecture``: "qwen2" (RMSNorm, RoPE, gated) or "gpt2" (LayerNorm, learned positions)."""

    architecture: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab_size: int
    context: int

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads


SHAPES = {
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 151_936, 32_768),
    "gpt2": Shape("gpt2", 12, 768, 3072, 12, 12, 50_257, 1024),
}


def write_gguf(shape: Shape, vocabulary: Path, target: Path) -> None:
    """Matrices in fp16, embeddings serve as the head too. ``vocabulary``: a .gguf file with a byte-level BPE tokenizer."""
    writer = GGUFWriter(target, shape.architecture)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    if shape.architecture == "qwen2":
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1e6)
        writer.add_vocab_size(shape.vocab_size)
    else:
        writer.add_layer_norm_eps(1e-5)
    _add_vocabulary(writer, GGUFReader(vocabulary), shape.vocab_size)
    chance = np.random.default_rng(SEED)
    for name, size in tensors(shape).items():
        writer.add_tensor(name, _values(name, size, chance))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter, source: GGUFReader, size: int) -> None:
    tokens, kinds, merges = (source.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    unused = range(len(tokens), size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *(f"<|unused_{number}|>" for number in unused)])
    writer.add_token_types([*kinds, *(TokenType.UNUSED for _ in unused)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def tensors(shape: Shape) -> dict[str, Size]:
    """Sizes by name; matrices are [outputs, inputs]."""
    hidden, inner = shape.hidden, shape.inner
    ends: dict[str, Size] = {"token_embd": (shape.vocab_size, hidden), "output_norm": (hidden,)}
    layer: dict[str, Size] = {"attn_norm": (hidden,), "attn_output": (hidden, hidden), "ffn_norm": (hidden,)}
    layer |= {"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    if shape.architecture == "qwen2":
        queries: dict[str, Size] = {
            "attn_q": (hidden, hidden),
            "attn_k": (shape.kv_width, hidden),
            "attn_v": (shape.kv_width, hidden),
        }
        layer |= {**queries, "ffn_gate": (inner, hidden)}
        biased = set(queries)
    else:
        ends["position_embd"] = (shape.context, hidden)
        layer["attn_qkv"] = (3 * hidden, hidden)
        biased = {*layer, "output_norm"}
    sizes: dict[str, Size] = {}
    for place, parts in {"": ends, **{f"blk.{number}.": layer for number in range(shape.layers)}}.items():
        sizes |= {f"{place}{name}.weight": size for name, size in parts.items()}
        sizes |= {f"{place}{name}.bias": size[:1] for name, size in parts.items() if name in biased}
    return sizes


def _values(name: str, size: Size, chance: np.random.Generator) -> np.ndarray[Any, Any]:
    if name.endswith("norm.weight"):
        return np.ones(size, np.float32)
    values = SPREAD * chance.standard_normal(size, np.float32)
    return values.astype(np.float16) if len(size) > 1 else values
