"""An encoder that would be served wrong is refused in words, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.models.bert import modeling_bert

from fastserve.errors import FastServeError, InvalidRequest, ModelNotFound, ProofFailed, UnsupportedModel
from fastserve.export import command
from fastserve.export.encoders import packed_attention, plan
from fastserve.export.encoders.heads import Rows
from fastserve.export.exporters import export_any
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.rewrites import quantization
from tests.synthetic.test_export_refusals import parse
from tests.synthetic.tiny_encoders import (
    AUTO_CLASSES,
    MARKERS,
    add_sentence_transformers_files,
    save_encoder,
    tiny_encoder_tokenizer,
)
from tests.synthetic.tiny_models import fill_randomly


def export(source: Path, task: str, **options: Any) -> ExportResult:
    return export_any(str(source), ExportOptions(source.parent / "repository", task=task, **options))


def refuse(source: Path, task: str, error: type[FastServeError], reason: str, **options: Any) -> None:
    """The export of ``source`` must end in ``error``, and the repository must not have come to be."""
    with pytest.raises(error, match=reason):
        export(source, task, **options)
    assert [path.name for path in source.parent.iterdir()] == ["source"]


# --- what the proof finds ---------------------------------------------------------------------------------------------


def lose_positions(patch: pytest.MonkeyPatch) -> None:
    longest = plan.longest_sequence
    patch.setattr(plan, "position_offset", lambda model: 0)
    patch.setattr(plan, "longest_sequence", lambda model, offset: longest(model, 2))


def lose_token_types(patch: pytest.MonkeyPatch) -> None:
    embed = modeling_bert.BertEmbeddings.forward

    def forward(module: Any, input_ids: Any = None, token_type_ids: Any = None, **rest: Any) -> Any:
        traced = token_type_ids is not None and torch.compiler.is_exporting()
        return embed(module, input_ids, token_type_ids=token_type_ids * 0 if traced else token_type_ids, **rest)

    patch.setattr(modeling_bert.BertEmbeddings, "forward", forward)


def lose_the_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packed_attention, "reach", lambda layer: layer.window)  # one token too far


def lose_the_scale(patch: pytest.MonkeyPatch) -> None:
    emit = packed_attention.PackedInputs.emit
    patch.setattr(
        packed_attention.PackedInputs,
        "emit",
        lambda inputs, layer, *rest: emit(inputs, dataclasses.replace(layer, scale=0.3), *rest),
    )


def pool_otherwise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "rows_read", lambda *arguments: Rows.MEAN)


@pytest.mark.parametrize(
    ("lose", "task", "family"),
    [
        (lose_positions, "token-classification", "roberta"),
        (lose_token_types, "token-classification", "bert"),
        (lose_the_window, "token-classification", "modernbert"),
        (lose_the_scale, "fill-mask", "distilbert"),
        (pool_otherwise, "text-classification", "distilbert"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_proof_fails_when_something_is_lost_on_the_way(
    lose: Callable[[pytest.MonkeyPatch], None], task: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_encoder(task, family, tmp_path / "source")
    lose(monkeypatch)
    refuse(source, task, ProofFailed, "max_abs_difference")


def test_the_proof_of_int8_fails_when_the_weights_are_not_those_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = quantization.pack_weight
    monkeypatch.setattr(quantization, "pack_weight", lambda weight: pack(np.ascontiguousarray(weight[::-1])))
    source = save_encoder("token-classification", "bert", tmp_path / "source")
    refuse(source, "token-classification", ProofFailed, "relative_error", dtype="int8")


def test_a_layer_that_mixes_tokens_outside_attention_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_encoder("token-classification", "bert", tmp_path / "source")
    monkeypatch.setattr(
        modeling_bert.BertIntermediate, "forward", lambda module, x: torch.relu(module.dense(x - x.mean(1, keepdim=True)))
    )
    refuse(source, "token-classification", UnsupportedModel, "over the token axis")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(tmp_path: Path) -> None:
    source = save_encoder("feature-extraction", "distilbert", tmp_path / "source")
    refuse(source, "token-classification", UnsupportedModel, "the checkpoint is a DistilBertModel")
    settings = json.loads((source / "config.json").read_text())
    del settings["architectures"]
    (source / "config.json").write_text(json.dumps(settings))
    refuse(source, "token-classification", UnsupportedModel, r"lacks weights .*classifier")


def test_layers_that_have_no_place_are_refused(tmp_path: Path) -> None:
    source = save_encoder("token-classification", "bert", tmp_path / "source", num_hidden_layers=3)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    refuse(source, "token-classification", UnsupportedModel, r"no place for .*encoder\.layer\.2")


def test_heads_for_other_tasks_may_be_left_over(tmp_path: Path) -> None:
    config = AUTO_CLASSES["fill-mask"].from_config(transformers.BertConfig(num_hidden_layers=1)).config
    config.update({"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64})
    tokenizer = tiny_encoder_tokenizer("bert")
    config.vocab_size = len(tokenizer)
    model = transformers.BertForPreTraining(config).eval()
    fill_randomly(model)
    for folder in (model, tokenizer):
        folder.save_pretrained(tmp_path / "source")
    names = load_file(tmp_path / "source" / "model.safetensors")
    assert "bert.pooler.dense.weight" in names and "cls.seq_relationship.weight" in names
    assert export(tmp_path / "source", "fill-mask").manifest.task == "fill-mask"
    assert export(tmp_path / "source", "feature-extraction", name="embeddings").manifest.task == "feature-extraction"


def test_a_model_that_nobody_told_what_a_mask_is_fills_none(tmp_path: Path) -> None:
    source = save_encoder("fill-mask", "bert", tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    refuse(source, "fill-mask", UnsupportedModel, "no mask token")


def test_one_score_is_needed_to_rerank(tmp_path: Path) -> None:
    source = save_encoder("reranking", "bert", tmp_path / "source", num_labels=2)
    refuse(source, "reranking", UnsupportedModel, r"cannot be served for reranking: encoder\.labels: got 2")


def test_a_configuration_that_transformers_does_not_take_is_a_readable_error(tmp_path: Path) -> None:
    source = save_encoder("text-classification", "modernbert", tmp_path / "source")
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"classifier_pooling": "late"}))
    refuse(source, "text-classification", UnsupportedModel, "classifier_pooling")


def test_a_tokenizer_that_gives_the_model_more_than_the_graph_takes_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tiny_encoder_tokenizer("bert")
    tokenizer.model_input_names = ["input_ids", "input_shape_ids", "attention_mask", "some_mark_for_training"]
    sizes = {name: len(tokenizer) for name in ("vocab_size", "shape_vocab_size", "pronunciation_vocab_size")}
    config = transformers.RoCBertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2, **sizes
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    refuse(tmp_path / "source", "text-classification", UnsupportedModel, r"roc_bert: its tokenizer also gives input_shape_ids:")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncates texts at their beginning"),
        (
            "config.json",
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            "function_to_apply=none",
        ),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.Identity"}, "function_to_apply=none"),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, ""),
    ],
)
def test_what_other_libraries_would_do_otherwise_is_told(tmp_path: Path, file: str, change: dict[str, Any], words: str) -> None:
    source = save_encoder("reranking", "distilbert", tmp_path / "source")
    (source / file).write_text(json.dumps(json.loads((source / file).read_text()) | change))
    notes = export(source, "reranking").notes
    assert [words in note for note in notes] == ([True] if words else [])


# --- files beside the weights -----------------------------------------------------------------------------------------


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    return add_sentence_transformers_files(save_encoder("feature-extraction", "distilbert", tmp_path / "source"))


def test_a_module_that_the_graph_would_lack_is_refused_by_name(embedder: Path) -> None:
    modules = json.loads((embedder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (embedder / "modules.json").write_text(json.dumps(modules))
    refuse(embedder, "feature-extraction", UnsupportedModel, "Transformer, Pooling, Dense, Normalize")


@pytest.mark.parametrize(
    "modes", [{"pooling_mode_max_tokens": True}, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, {}]
)
def test_pooling_of_another_kind_is_refused(embedder: Path, modes: dict[str, bool]) -> None:
    (embedder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    refuse(embedder, "feature-extraction", UnsupportedModel, "only mean or cls")


def test_pooling_may_be_named_in_one_word(embedder: Path) -> None:
    (embedder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    spec = export(embedder, "feature-extraction").manifest.encoder
    assert spec is not None and spec.pooling == "cls"


def test_lower_case_that_the_tokenizer_does_not_make_is_refused(embedder: Path) -> None:
    (embedder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))
    refuse(embedder, "feature-extraction", UnsupportedModel, "do_lower_case")


def test_windows_are_as_long_as_the_source_reads_and_prompts_are_told(embedder: Path) -> None:
    (embedder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (embedder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: ", "passage": ""}}))
    result = export(embedder, "feature-extraction")
    assert result.manifest.encoder is not None and result.manifest.encoder.max_length == 64
    assert result.notes == ("the model's prompts are not applied, put them in front of the texts (query: 'query: ')",)


@pytest.mark.parametrize(
    "text", ["[", pytest.param("[" * 100_000, id="nested"), "{}", '[{"path": ""}]', '[{"type": "models.Transformer"}]', "[1]"]
)
def test_a_file_that_cannot_be_read_is_named(embedder: Path, text: str) -> None:
    (embedder / "modules.json").write_text(text)
    refuse(embedder, "feature-extraction", ModelNotFound, r"modules\.json cannot be read")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_exports_an_encoder_and_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_encoder("relation-extraction", "roberta", tmp_path / "source")
    words = ["--task", "relation-extraction", "--output", str(tmp_path / "repository"), "--name", "relations", "--dtype", "int8"]
    words += ["--max-length", "100", "--stride", "10", "--markers", *MARKERS]
    assert command.run(parse(str(source), *words)) == 0
    printed = capsys.readouterr().out
    for part in ("relation-extraction", "100 tokens", "share 10", "no_relation, born_in", *MARKERS, "lowest cosine", "bitwise"):
        assert part in printed
    assert (tmp_path / "repository" / "relations" / "1" / "model.onnx.data").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("--task", "fill-mask", "--pooling", "cls"),
        ("--task", "fill-mask", "--max-length", "1"),
        ("--task", "text-generation", "--dtype", "int8"),
        ("--task", "relation-extraction", "--markers", "a", "a", "b", "b"),
    ],
)
def test_the_command_answers_an_option_that_does_not_suit_with_one_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(parse("anywhere", *words)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and len(printed.splitlines()) == 1


def test_a_window_longer_than_the_positions_is_refused_after_the_model_was_read(tmp_path: Path) -> None:
    source = save_encoder("token-classification", "roberta", tmp_path / "source")
    refuse(source, "token-classification", InvalidRequest, "at most 128", max_length=129)
