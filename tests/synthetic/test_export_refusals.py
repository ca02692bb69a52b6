"""An export that would be wrong, or cannot be made, ends in a readable error and leaves nothing behind."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.integrations.moe import ExpertsInterface
from transformers.models.llama import modeling_llama

from fastserve.errors import InvalidRequest, ModelNotFound, ProofFailed, ToolError, UnsupportedModel
from fastserve.export import attention, command, experts, graph_guards
from fastserve.export.graph import trace_packed
from fastserve.export.options import ExportOptions, Stage
from fastserve.export.targets import TARGETS
from fastserve.export.text_generation import export_model
from fastserve.manifest import CPU
from tests.synthetic.decoder_families import FAMILIES
from tests.synthetic.tiny_models import (
    gpt2_config,
    llama_config,
    mistral_config,
    qwen2_config,
    random_model,
    save_model,
    tiny_tokenizer,
)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama_config(), tmp_path_factory.mktemp("source") / "llama")


def shape_of_llama() -> dict[str, Any]:
    """The sizes and special ids of the tiny Llama, for the configurations of other families."""
    settings = llama_config().to_dict()
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    return {key: settings[key] for key in (*keys, "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")}


def gemma2_config() -> Any:
    return transformers.Gemma2Config(**shape_of_llama(), head_dim=16, query_pre_attn_scalar=24, attn_logit_softcapping=2.0)


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        (mistral_config, {"window": -1}),
        (gemma2_config, {"softcap": 0.0}),
        (lambda: gpt2_config(scale_attn_by_inverse_layer_idx=True), {"scale": 0.25}),
    ],
    ids=["window", "softcap", "scale"],
)
def test_the_proof_fails_when_a_feature_is_lost_on_the_way_to_the_graph(
    config: Callable[[], Any], lost: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_model(config(), tmp_path / "source")
    emit = attention.PagedInputs.emit

    def emit_without(inputs: Any, layer: attention.AttentionLayer, *operands: Any) -> Any:
        return emit(inputs, dataclasses.replace(layer, **lost), *operands)

    monkeypatch.setattr(attention.PagedInputs, "emit", emit_without)
    with pytest.raises(ProofFailed, match="max_abs_logit_difference"):
        export_model(str(source), ExportOptions(tmp_path / "repository"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_fine_tune_for_another_task_is_refused_instead_of_getting_a_random_head(tmp_path: Path) -> None:
    classifier = transformers.AutoModelForSequenceClassification.from_config(qwen2_config())
    classifier.save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedModel, match=r"lm_head\.weight"):
        export_model(str(tmp_path / "source"), ExportOptions(tmp_path / "repository"))
    assert not (tmp_path / "repository").exists()


def test_the_proof_fails_when_attention_sinks_are_lost_on_the_way_to_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FAMILIES["gpt_oss"].save(tmp_path / "source")
    emit = attention.PagedInputs.emit
    monkeypatch.setattr(attention.PagedInputs, "emit", lambda *operands: emit(*operands[:-1], None))  # the last is the sink
    with pytest.raises((ProofFailed, UnsupportedModel), match="max_abs_logit_difference"):
        export_model(str(source), ExportOptions(tmp_path / "repository"))


def test_a_mixture_with_a_norm_after_each_expert_is_refused() -> None:
    module = types.SimpleNamespace(has_post_expert_norm=True)
    with pytest.raises(UnsupportedModel, match="a norm after each expert"):
        experts.all_experts(module, *(torch.zeros(1, 1) for _ in range(3)))


def test_registries_and_implementations_are_as_before_when_a_trace_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(FAMILIES["mixtral"].config())
    before = model.config._experts_implementation, model.config._attn_implementation
    layers = attention.probe(model)
    monkeypatch.setattr(attention.PagedInputs, "emit", lambda *arguments: 1 / 0)
    with pytest.raises(UnsupportedModel, match="division by zero"):
        trace_packed(model, layers, TARGETS[CPU])
    assert (model.config._experts_implementation, model.config._attn_implementation) == before
    assert attention.IMPLEMENTATION not in transformers.AttentionInterface().valid_keys()
    assert experts.IMPLEMENTATION not in ExpertsInterface().valid_keys()


def test_a_configured_feature_that_the_model_does_not_pass_on_is_refused(tmp_path: Path) -> None:
    source = save_model(llama_config(sliding_window=8), tmp_path / "source")
    with pytest.raises(UnsupportedModel, match="sliding_window asks for 8"):
        export_model(str(source), ExportOptions(tmp_path / "repository"))


def test_a_layer_that_does_not_attend_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = modeling_llama.LlamaAttention.forward

    def only_in_layer_0(module: Any, hidden_states: torch.Tensor, **rest: Any) -> Any:
        return (hidden_states, None) if module.layer_idx else attend(module, hidden_states, **rest)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", only_in_layer_0)
    with pytest.raises(UnsupportedModel, match="1 attention layers reached"):
        export_model(str(llama), ExportOptions(tmp_path))


def test_a_layer_that_mixes_tokens_outside_attention_is_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        modeling_llama.LlamaMLP, "forward", lambda module, x: module.down_proj(module.up_proj(x - x.mean(1, keepdim=True)))
    )
    with pytest.raises(UnsupportedModel, match="over the token axis"):
        export_model(str(llama), ExportOptions(tmp_path))


def test_a_family_with_its_own_attention_is_refused_even_when_nobody_listed_it(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 269}
    source = save_model(transformers.BioGptConfig(**sizes), tmp_path / "source")
    with pytest.raises(UnsupportedModel, match="BioGptForCausalLM computes attention in its own modules"):
        export_model(str(source), ExportOptions(tmp_path / "repository"))


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "novel", "auto_map": {"AutoConfig": "novel.NovelConfig"}}')
    (source / "novel.py").write_text("raise SystemExit")
    with pytest.raises(UnsupportedModel, match="custom code"):
        export_model(str(source), ExportOptions(tmp_path / "repository"))


def test_a_graph_that_onnx_runtime_cannot_load_fails_the_proof(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "OPERATOR", "UnheardOfAttention")
    monkeypatch.setattr(graph_guards, "OPERATOR", "UnheardOfAttention")
    with pytest.raises(ProofFailed, match="UnheardOfAttention"):
        export_model(str(llama), ExportOptions(tmp_path / "repository"))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        export_model(str(tmp_path), ExportOptions(tmp_path / "repository"))


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    config = llama_config()
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="quantised"):
        export_model(str(tmp_path), ExportOptions(tmp_path / "repository"))


def test_a_model_type_nobody_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "from_the_future"}')
    with pytest.raises(UnsupportedModel, match="from_the_future"):
        export_model(str(tmp_path), ExportOptions(tmp_path / "repository"))


def test_a_source_that_is_not_there_is_a_readable_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = ExportOptions(tmp_path / "repository")
    with pytest.raises(ModelNotFound, match="no such file"):
        export_model(str(tmp_path / "nowhere" / "model"), options)
    with pytest.raises(ModelNotFound, match="Hugging Face hub"):
        export_model("nobody/no-such-model", options)


def test_a_folder_is_told_what_it_lacks(tmp_path: Path) -> None:
    options = ExportOptions(tmp_path / "repository")
    with pytest.raises(ModelNotFound, match=r"neither config\.json nor a \.gguf"):
        export_model(str(tmp_path), options)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFound, match=r"a\.gguf, b\.gguf"):
        export_model(str(tmp_path), options)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="adapter"):
        export_model(str(tmp_path), options)
    with pytest.raises(InvalidRequest, match=r"config\.json"):
        export_model(str(tmp_path / "adapter_config.json"), options)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_command_exports_and_says_what_came_of_it(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(parse(str(llama), "--output", str(tmp_path), "--name", "tiny")) == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed and "bitwise equal" in printed and "fastserve serve" in printed
    assert (tmp_path / "tiny" / "1" / "manifest.json").is_file()
    assert command.run(parse(str(llama), "--output", str(tmp_path), "--name", "tiny")) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--task", "translation"), ("--dtype", "int3"), ("--version", "0")])
def test_the_command_answers_a_bad_option_with_one_line(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(parse("anywhere", *words)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and len(printed.splitlines()) == 1


def test_ctrl_c_ends_the_command_cleanly(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(display: object, stage: Stage) -> None:
        if stage is Stage.TRACE:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.StageDisplay, "show", interrupt)
    assert command.run(parse(str(llama), "--output", str(tmp_path / "repository"))) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_request_to_end_cleans_up_like_ctrl_c(
    number: signal.Signals, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_to_end(display: object, stage: Stage) -> None:
        if stage is Stage.TRACE:
            assert list(tmp_path.iterdir())
            os.kill(os.getpid(), number)

    def unheard(*arguments: object) -> None:
        raise AssertionError("the command does not listen")

    before = signal.signal(number, unheard)
    try:
        monkeypatch.setattr(command.StageDisplay, "show", ask_to_end)
        assert command.run(parse(str(llama), "--output", str(tmp_path / "repository"))) == 130
        assert signal.getsignal(number) is unheard
    finally:
        signal.signal(number, before)
    assert list(tmp_path.iterdir()) == []


def test_the_command_may_run_outside_the_main_thread(tmp_path: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(command.run(parse(str(tmp_path), "--output", str(tmp_path)))))
    thread.start()
    thread.join()
    assert codes == [1]


def test_an_output_that_is_a_file_is_refused_before_the_model_is_read(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stages: list[Stage] = []
    with pytest.raises(ToolError, match="is a file"):
        export_model(str(llama), ExportOptions(tmp_path / "file"), stages.append)
    assert stages == []


def test_torch_keeps_its_grad_mode(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        export_model(str(llama), ExportOptions(tmp_path), stop_at_convert)
    assert torch.is_grad_enabled()


def stop_at_convert(stage: Stage) -> None:
    if stage is Stage.CONVERT:
        raise RuntimeError("stop")
