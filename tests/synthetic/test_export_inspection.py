"""What the doctor sees of a checkpoint without reading its weights, against the checkpoint itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BertConfig, BertForTokenClassification, CodeGenConfig, LlamaConfig

from fastserve.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from fastserve.export.inspection import inspect_model
from tests.synthetic.tiny_models import TINY_CONFIGS, save_model


@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_sizes_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    folder = save_model(TINY_CONFIGS[name](), tmp_path / name)
    seen = inspect_model(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (seen.task, seen.model_type) == ("text-generation", model.config.model_type)
    assert seen.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert seen.kv_bytes_per_token == 2 * 4 * text.num_hidden_layers * heads * size
    assert seen.max_length == text.max_position_embeddings
    head = model.get_output_embeddings().weight
    assert head.numel() == seen.head_elements < seen.matmul_elements < seen.num_parameters


def test_no_weight_is_read(tmp_path: Path) -> None:
    LlamaConfig(architectures=["LlamaForCausalLM"], num_hidden_layers=2).save_pretrained(tmp_path)
    seen = inspect_model(str(tmp_path))
    assert seen.weight_bytes > 2 << 30 and not list(tmp_path.glob("*.safetensors"))


def test_an_encoder_gets_its_task_from_the_architecture(tmp_path: Path) -> None:
    config = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    BertForTokenClassification(config).save_pretrained(tmp_path)
    seen = inspect_model(str(tmp_path))
    assert (seen.task, seen.kv_bytes_per_token, seen.max_length) == ("token-classification", 0, 512)
    with pytest.raises(UnsupportedModel, match="BertForTokenClassification"):
        inspect_model(str(tmp_path), "question-answering")


def test_a_family_with_attention_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    CodeGenConfig(architectures=["CodeGenForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="codegen"):
        inspect_model(str(tmp_path))


def test_a_feature_that_the_attention_operator_lacks_is_refused_without_weights(tmp_path: Path) -> None:
    LlamaConfig(architectures=["LlamaForCausalLM"], head_dim=12, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="heads of 12 elements"):
        inspect_model(str(tmp_path))


def test_an_architecture_that_says_no_task_asks_for_one(tmp_path: Path) -> None:
    BertConfig(architectures=["BertForNextSentencePrediction"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="say --task"):
        inspect_model(str(tmp_path))


def test_what_is_no_model_and_what_is_no_task_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        inspect_model(str(tmp_path / "nothing"))
    with pytest.raises(InvalidRequest, match="task"):
        inspect_model(str(tmp_path), "poetry")
