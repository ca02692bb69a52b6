"""A GGUF file is a source like any other: its weights, tokenizer and chat template arrive in the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.text_generation import export_model
from tests.synthetic.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, WEIGHT_STD, tiny_tokenizer

HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD, CONTEXT = 64, 4, 2, 2, 96, 128
CONTROL_TOKEN, NORMAL_TOKEN = 3, 1


def write_gguf(path: Path) -> Path:
    """A random Llama with tied embeddings and the tiny tokenizer."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    vocabulary_size = add_tokenizer(writer)
    writer.add_vocab_size(vocabulary_size)
    for name, tensor in random_tensors(vocabulary_size).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: Any) -> int:
    """Returns the vocabulary's size."""
    tokenizer = tiny_tokenizer()
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = [" ".join(pair) for pair in backend_merges(tokenizer)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([CONTROL_TOKEN if token in SPECIAL_TOKENS else NORMAL_TOKEN for token, _ in by_id])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(by_id)


def backend_merges(tokenizer: Any) -> list[list[str]]:
    merges: list[list[str]] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return merges


def random_tensors(vocabulary_size: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    kv_size = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary_size, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv_size, HIDDEN),
            "attn_v": (kv_size, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    generator = np.random.default_rng(3)
    return {
        name: (generator.normal(0.0, WEIGHT_STD, shape) + float("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "Tiny.F32.gguf")
    return export_model(str(folder), ExportOptions(tmp_path_factory.mktemp("repository")))


def test_a_folder_with_one_gguf_file_is_exported_under_the_files_name(export: ExportResult) -> None:
    assert export.manifest.model.name == "Tiny.F32"
    assert export.manifest.model.model_type == "llama"
    assert export.manifest.model.max_model_len == CONTEXT
    assert export.manifest.proof["greedy_disagreements"] == 0.0


def test_tokenizer_and_chat_template_come_from_the_file(export: ExportResult) -> None:
    spec = export.manifest.tokenizer
    assert spec is not None and spec.eos_token_ids == (2,)
    tokenizer = Tokenizer.from_file(str(export.directory / spec.file))
    text = "the other <|im_end|> one"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert (export.directory / (spec.chat_template or "")).read_text() == CHAT_TEMPLATE
