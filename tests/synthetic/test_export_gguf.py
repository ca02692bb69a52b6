"""A GGUF file is a source like any other: its weights, tokenizer and chat template arrive in the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from fastserve.errors import ModelNotFound, UnsupportedModel
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.source import load, load_config, resolve
from fastserve.export.text_generation import export_model
from tests.synthetic.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, WEIGHT_STD, tiny_tokenizer

HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD, CONTEXT = 64, 4, 2, 2, 96, 128
CONTROL_TOKEN, NORMAL_TOKEN = 3, 1


def write_gguf(path: Path, tensors: tuple[str, ...] = (), name: str = "tiny", **keys: Any) -> Path:
    """A random Llama with tied embeddings and the tiny tokenizer. ``tensors``: names of vectors to add; ``keys``: strings,
    truth values and numbers to add below "llama." ("__" stands for a dot)."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
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
    for own, tensor in random_tensors(vocabulary_size).items():
        writer.add_tensor(own, tensor)
    for extra in tensors:
        writer.add_tensor(extra, np.full(HIDDEN // HEADS // 2 if "rope" in extra else HIDDEN, 4.0, np.float32))
    for key, value in keys.items():
        adders: dict[type, Any] = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
        adders.get(type(value), writer.add_float32)("llama." + key.replace("__", "."), value)
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


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.2.attn_norm.weight", "blk.1.attn_sinks.weight"])
def test_a_tensor_that_the_source_model_has_no_place_for_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tensors=(name,))
    with pytest.raises(UnsupportedModel, match=rf"skips 1 tensors .*{name}") as caught:
        export_model(str(tmp_path / "tiny.gguf"), ExportOptions(tmp_path / "repository"))
    assert ("rotary" in str(caught.value)) == name.startswith("rope_freqs")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    "keys",
    [
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        {"rope__scaling__type": "yarn"},
        {"rope__scaling__factor": 4.0},
        {"rope__scaling__attn_factor": 1.2},
        {"attention__sliding_window": 16},
        {"attention__scale": 0.5},
        {"attention__key_length": 32},
        {"logit_scale": 0.5},
        {"a_key_of_the_future": 1},
    ],
    ids=str,
)
def test_a_key_that_transformers_does_not_read_is_refused_by_name(keys: dict[str, Any], tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", **keys)
    with pytest.raises(UnsupportedModel, match=f"llama.{next(iter(keys)).replace('__', '.')} = "):
        export_model(str(tmp_path / "tiny.gguf"), ExportOptions(tmp_path / "repository"))


def test_keys_that_ask_for_nothing_are_let_through(tmp_path: Path) -> None:
    scaling = {"rope__scaling__type": "none", "rope__scaling__factor": 1.0, "rope__scaling__original_context_length": 64}
    sizes = {"attention__key_length": HIDDEN // HEADS, "attention__value_length": HIDDEN // HEADS, "expert_count": 0}
    attention = {"attention__causal": True, "attention__sliding_window": CONTEXT, "attention__scale": (HIDDEN // HEADS) ** -0.5}
    source = resolve(str(write_gguf(tmp_path / "tiny.gguf", **scaling, **sizes, **attention)))
    assert load(source, load_config(source)).model.config.model_type == "llama"


def test_a_window_that_the_file_does_not_set_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", name="mistral")  # by this name transformers builds a Mistral, with the window of another
    with pytest.raises(UnsupportedModel, match="does not say its sliding window"):
        export_model(str(tmp_path / "tiny.gguf"), ExportOptions(tmp_path / "repository"))


def test_half_a_gguf_file_is_a_readable_error(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((ModelNotFound, UnsupportedModel), match="tiny"):
        export_model(str(file), ExportOptions(tmp_path / "repository"))
