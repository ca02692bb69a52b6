"""A PEFT adapter is merged into the weights before the export; what does not fit is refused by name."""

from __future__ import annotations

import builtins
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fastserve.errors import FastServeError, InvalidRequest, ModelNotFound, ProofFailed, ToolError, UnsupportedModel
from fastserve.export import adapter as adapter_module
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.summary import summary
from fastserve.export.text_generation import export_model
from tests.synthetic.test_export_models import generate_together, generate_with_torch, prompts
from tests.synthetic.tiny_models import llama_config, save_model, tiny_tokenizer

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama_config(), tmp_path_factory.mktemp("source") / "base")


def save_adapter(base: Path, directory: Path, config: Any) -> Any:
    """Save a random adapter for ``base``; returns the model with the adapter beside its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name or "prompt" in name:
                    parameter.normal_(0.0, 0.3, generator=generator)
        wrapped.save_pretrained(directory)
    return wrapped


@pytest.fixture(scope="module")
def tuned(base: Path) -> Any:
    return save_adapter(base, base.parent / "tuned", peft.LoraConfig(**LORA))


@pytest.fixture(scope="module")
def export(base: Path, tuned: Any) -> ExportResult:
    return export_model(str(base), ExportOptions(base.parent / "repository", adapter=base.parent / "tuned"))


@pytest.fixture
def copy(base: Path, tuned: Any, tmp_path: Path) -> Path:
    """The adapter's folder, for a test to damage."""
    return Path(shutil.copytree(base.parent / "tuned", tmp_path / "tuned"))


def refuse(base: Path, adapter: Path, error: type[FastServeError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        export_model(str(base), ExportOptions(adapter.parent / "repository", adapter=adapter))
    assert not (adapter.parent / "repository").exists()


def test_the_export_generates_what_base_and_adapter_generate(base: Path, tuned: Any, export: ExportResult) -> None:
    asked = prompts(export.manifest.model.vocab_size)
    answers = generate_together(export, asked)
    assert answers == [generate_with_torch(tuned, prompt) for prompt in asked]
    untuned = AutoModelForCausalLM.from_pretrained(base).eval()
    assert answers != [generate_with_torch(untuned, prompt) for prompt in asked]


def test_manifest_and_summary_name_the_adapter(export: ExportResult) -> None:
    assert export.manifest.model.adapter == "tuned"
    assert export.notes == ()
    console = Console(record=True, width=160)
    console.print(summary(export))
    assert "tuned, merged into the weights" in console.export_text()


def test_an_adapter_brings_its_tokenizer_and_a_base_of_another_name_is_said(base: Path, copy: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(copy)
    change(copy, base_model_name_or_path="somebody/other")
    result = export_model(str(base), ExportOptions(tmp_path / "repository", adapter=copy))
    assert (result.directory / "chat_template.jinja").read_text() == tokenizer.chat_template
    assert result.notes == ("the adapter was made for somebody/other, and is merged into base",)


def change(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_without_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    refuse(base, tmp_path, ModelNotFound, r"not an adapter, it has no adapter_config\.json")


def test_a_damaged_adapter_is_refused(base: Path, copy: Path) -> None:
    (copy / "adapter_model.safetensors").write_bytes(b"nothing")
    refuse(base, copy, ModelNotFound, "weights cannot be read")
    (copy / "adapter_config.json").write_text("{")
    refuse(base, copy, ModelNotFound, "cannot be read")


def test_an_adapter_of_another_size_is_refused(copy: Path, tmp_path: Path) -> None:
    wider = save_model(llama_config(hidden_size=128), tmp_path / "wider")
    refuse(wider, copy, UnsupportedModel, r"made for .*base, does not fit wider \(LlamaForCausalLM\)")


def test_an_adapter_of_another_family_is_refused(base: Path, copy: Path) -> None:
    change(copy, target_modules=["c_attn"])
    refuse(base, copy, UnsupportedModel, "does not fit base .*c_attn")


def test_an_adapter_with_weights_that_find_no_place_is_refused(base: Path, copy: Path) -> None:
    weights = load_file(copy / "adapter_model.safetensors")
    deeper = {name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in weights.items()}
    save_file(weights | deeper, copy / "adapter_model.safetensors")
    refuse(base, copy, UnsupportedModel, r"layers\.2.* has no counterpart")
    save_file({name: tensor for name, tensor in weights.items() if "layers.0" in name}, copy / "adapter_model.safetensors")
    refuse(base, copy, UnsupportedModel, r"layers\.1.* has no counterpart")


def test_an_adapter_for_another_task_is_refused(base: Path, copy: Path) -> None:
    change(copy, task_type="SEQ_CLS")
    refuse(base, copy, UnsupportedModel, "an adapter for SEQ_CLS")


def test_an_adapter_that_cannot_be_merged_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "prompt", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    refuse(base, tmp_path / "prompt", UnsupportedModel, "type PROMPT_TUNING cannot be merged")


def test_a_merge_that_changes_the_answers_fails(base: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_module, "MERGE_TOLERANCE", -1.0)
    refuse(base, copy, ProofFailed, "merging the adapter changes")


def test_a_tokenizer_larger_than_the_model_is_refused(base: Path, copy: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(copy)
    refuse(base, copy, UnsupportedModel, "270 tokens, the model 269 embeddings")


def test_without_peft_the_error_says_how_to_get_it(base: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_peft(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    refuse(base, copy, ToolError, r"pip install 'triton-fastserve\[adapter\]'")


def test_an_adapter_is_only_for_text_generation(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="adapter"):
        ExportOptions(tmp_path, task="fill-mask", adapter=tmp_path)
