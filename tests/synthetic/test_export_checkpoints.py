"""A checkpoint that is damaged, or whose parts do not belong together, is refused in words; nothing of it is lost in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastserve.errors import ModelNotFound, ToolError, UnsupportedModel
from fastserve.export import source as source_module
from fastserve.export import text_generation
from fastserve.export.options import ExportOptions
from fastserve.export.rotary import RotaryPlan
from fastserve.export.source import load, load_config, resolve
from fastserve.export.text_generation import export_model
from tests.synthetic.tiny_models import gpt2_config, llama_config, save_model, tiny_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama_config(), tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture
def checkpoint(llama: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(llama, tmp_path / "source"))


def export(checkpoint: Path) -> None:
    export_model(str(checkpoint), ExportOptions(checkpoint.parent / "repository"))


def add_weights(checkpoint: Path, **tensors: torch.Tensor) -> None:
    file = checkpoint / "model.safetensors"
    save_file(load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def change_config(checkpoint: Path, name: str = "config.json", **changes: Any) -> None:
    file = checkpoint / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "name", ["model__layers__0__self_attn__q_proj__bias", "model__layers__2__mlp__up_proj__weight", "value_head"]
)
def test_a_weight_that_the_model_has_no_place_for_is_refused_by_name(name: str, checkpoint: Path) -> None:
    add_weights(checkpoint, **{name: torch.ones(64)})
    with pytest.raises(UnsupportedModel, match=f"no place for 1 .*{name.replace('__', '.')}"):
        export(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["source"]


def test_fewer_layers_in_the_configuration_than_in_the_weights_are_refused(checkpoint: Path) -> None:
    change_config(checkpoint, num_hidden_layers=1)
    with pytest.raises(UnsupportedModel, match=r"no place for 9 .*model\.layers\.1"):
        export(checkpoint)


def test_buffers_that_old_checkpoints_hold_are_no_reason_to_refuse(checkpoint: Path, tmp_path: Path) -> None:
    embedding = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"].clone()
    add_weights(checkpoint, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8), lm_head__weight=embedding)
    old = save_model(gpt2_config(), tmp_path / "gpt2")
    add_weights(old, transformer__h__0__attn__masked_bias=torch.ones(1), transformer__h__0__attn__bias=torch.ones(1, 1, 4, 4))
    for folder in (checkpoint, old):
        found = resolve(str(folder))
        load(found, load_config(found))


def test_a_checkpoint_without_generation_config_is_fine(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    found = resolve(str(checkpoint))
    load(found, load_config(found))


def test_shapes_that_differ_from_the_configuration_are_refused(checkpoint: Path) -> None:
    change_config(checkpoint, intermediate_size=128)
    with pytest.raises(UnsupportedModel, match=r"shapes of the weights are not those of config\.json"):
        export(checkpoint)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff" * 4096, POINTER.encode()], ids=["empty", "garbage", "ff", "pointer"]
)
def test_weights_that_cannot_be_read_are_a_readable_error(content: bytes, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelNotFound, match="weights cannot be read") as caught:
        export(checkpoint)
    assert ("git lfs pull" in str(caught.value)) == content.startswith(b"version")


def test_half_a_weight_file_is_a_readable_error(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelNotFound, match="weights cannot be read"):
        export(checkpoint)


def test_a_tokenizer_that_is_only_a_pointer_is_a_readable_error(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text(POINTER)
    with pytest.raises(UnsupportedModel, match="git lfs pull"):
        export(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": 1,}', '{"max_new_tokens": -5}'])
def test_a_generation_config_that_cannot_be_parsed_is_not_ignored(text: str, checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text(text)
    with pytest.raises(ModelNotFound, match=r"generation_config\.json cannot be read"):
        export(checkpoint)


def test_a_sampling_default_that_the_server_refuses_is_refused_before_the_trace(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_generation, "trace_packed", None)
    change_config(checkpoint, "generation_config.json", top_p=0.0)
    with pytest.raises(UnsupportedModel, match="top_p: got 0"):
        export(checkpoint)


@pytest.mark.parametrize(
    ("template", "reason"), [("{% for %}", "not valid Jinja"), ("{{ messages | no_such_filter }}", "not valid Jinja")]
)
def test_a_chat_template_that_the_server_cannot_render_is_refused(template: str, reason: str, checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModel, match=reason):
        export(checkpoint)


def test_a_full_disk_is_one_readable_error_and_leaves_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "model.onnx.data")

    monkeypatch.setattr(text_generation, "write_graphs", full)
    with pytest.raises(ToolError, match=r"model\.onnx\.data: No space left on device"):
        export(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["source"]


def test_a_folder_that_may_not_be_read_is_a_readable_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(ToolError, match="source: Permission denied"):
        export(checkpoint)


def test_what_the_export_leaves_out_is_said(checkpoint: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128, **factors}
    change_config(checkpoint, rope_parameters=rope, auto_map={"AutoModelForCausalLM": "modeling_novel.Novel"})
    change_config(checkpoint, "generation_config.json", no_repeat_ngram_size=3)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": "{{ messages }}", "tools": "{{ messages }}"}
    (checkpoint / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(checkpoint)
    result = export_model(str(checkpoint), ExportOptions(checkpoint.parent / "repository"))
    assert result.notes == (
        "the code that comes with the checkpoint is not used, but transformers' LlamaForCausalLM",
        "not applied, of generation_config.json: no_repeat_ngram_size=3",
        "no chat template: none of rag, tools is called default",
        "longest context cut from 256 to the 128 tokens of its first RoPE factors; --max-model-len can choose the others",
    )


def test_a_window_that_the_proof_does_not_reach_is_said(llama: Path) -> None:
    found = resolve(str(llama))
    config = load_config(found)
    loaded = load(found, config)
    loaded.model.config.sliding_window = 4096
    assert text_generation._notes(loaded, RotaryPlan(256)) == ()
    loaded.model.config.max_position_embeddings = 8192
    assert text_generation._notes(loaded, RotaryPlan(8192)) == (
        "the proof does not reach beyond the sliding window of 4,096 tokens",
    )


def test_an_unknown_exception_of_a_file_format_is_still_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FormatError(Exception):
        pass

    def broken(*arguments: Any, **settings: Any) -> None:
        raise FormatError("line one\nline two")

    monkeypatch.setattr(source_module.AutoModelForCausalLM, "from_pretrained", broken)
    with pytest.raises(ModelNotFound, match=r"cannot be read: line one$"):
        export(checkpoint)
