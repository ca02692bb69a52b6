"""Heads of every family on texts: packed in one run, the export gives what the source gives for a padded batch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from fastserve.core.encoding import TokenSequence
from fastserve.export.exporters import export_any
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.worker.encoder_runner import EncoderRunner
from tests.synthetic.tiny_encoders import AUTO_CLASSES, MAX_LENGTH, add_sentence_transformers_files, save_encoder

TEXTS = (
    "Marie Curie was born in Poland",
    "a",
    "the film was not very good, and the book it is from is bad too " * 3,
    "who wrote this example?",
)
PAIRS = ("she works in Paris", "it is good " * 4, "not bad", "Ada")
FAMILIES = ("distilbert", "electra", "albert", "modernbert", "roberta", "xlm-roberta", "camembert")
CASES = [(task, family) for task in ("text-classification", "fill-mask") for family in FAMILIES] + [
    ("question-answering", "modernbert"),
    ("question-answering", "roberta"),
    ("reranking", "distilbert"),
    ("zero-shot-classification", "electra"),
    ("relation-extraction", "xlm-roberta"),
    ("feature-extraction", "modernbert"),
    ("feature-extraction", "albert"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    task: str
    source: Path
    result: ExportResult


def export(source: Path, repository: Path, task: str, **options: Any) -> ExportResult:
    return export_any(str(source), ExportOptions(repository, task=task, **options))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    task, family = request.param
    directory = tmp_path_factory.mktemp("export")
    source = save_encoder(task, family, directory / "source", seed=3)
    return Case(task, source, export(source, directory / "repository", task))


def encoded(case: Case) -> tuple[Any, Any]:
    """(the source's batch, its tokenizer); of fill-mask, the third token of each text is masked."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(case.source)
    pairs = list(PAIRS) if case.task not in ("fill-mask", "feature-extraction") else None
    batch = tokenizer(list(TEXTS), pairs, padding=True, return_tensors="pt")
    if case.task == "fill-mask":
        batch["input_ids"][:, 1] = tokenizer.mask_token_id
    return batch, tokenizer


def sequences(case: Case, batch: Any) -> list[TokenSequence]:
    made = []
    takes_types = "token_type_ids" in {spec.name for spec in case.result.manifest.graphs["encoder"].inputs}
    for row, mask in enumerate(batch["attention_mask"].bool()):
        ids = tuple(batch["input_ids"][row][mask].tolist())
        types = tuple(batch["token_type_ids"][row][mask].tolist()) if takes_types else ()
        made.append(TokenSequence(ids, types, (1,) if case.task == "fill-mask" else ()))
    return made


def answers(case: Case, batch: Any) -> list[np.ndarray[Any, Any]]:
    """Of the source model, from one padded batch."""
    model: Any = AUTO_CLASSES[case.task].from_pretrained(case.source).eval()
    with torch.no_grad():
        output = model(**batch)
    masks = batch["attention_mask"].bool()
    if case.task == "question-answering":
        both = torch.stack([output.start_logits, output.end_logits], dim=-1)
        return [rows[mask].numpy() for rows, mask in zip(both, masks, strict=True)]
    if case.task == "feature-extraction":
        return [rows[mask].mean(0).numpy() for rows, mask in zip(output.last_hidden_state, masks, strict=True)]
    if case.task == "fill-mask":
        return [rows[1:2].numpy() for rows in output.logits]
    return [row.numpy() for row in output.logits]


def test_packed_texts_get_the_answers_of_a_padded_batch_of_the_source(case: Case) -> None:
    batch, _ = encoded(case)
    runner = EncoderRunner(case.result.directory, case.result.manifest, num_threads=1)
    found = runner.run(sequences(case, batch))
    for got, wanted in zip(found, answers(case, batch), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_proof_found_the_source_and_no_influence_of_neighbours(case: Case) -> None:
    proof = case.result.manifest.proof
    assert 0 < proof["max_abs_difference"] < 1e-4 * proof["output_scale"]
    assert proof["max_abs_difference_alone_batched"] == proof["greedy_disagreements"] == 0
    assert proof["longest_sequence"] == case.result.manifest.model.max_model_len == MAX_LENGTH


# --- what the graph is made of ----------------------------------------------------------------------------------------


def graph_of(result: ExportResult) -> onnx.GraphProto:
    return onnx.load(str(result.directory / "model.onnx"), load_external_data=False).graph


def exported(tmp_path: Path, task: str, family: str, **options: Any) -> ExportResult:
    return export(save_encoder(task, family, tmp_path / "source"), tmp_path / "repository", task, **options)


def test_a_bert_is_nothing_but_lookups_products_norms_and_attention(tmp_path: Path) -> None:
    graph = graph_of(exported(tmp_path, "token-classification", "bert"))
    assert Counter(node.op_type for node in graph.node) == {
        "Gather": 3,
        "LayerNormalization": 5,
        "MatMul": 2 * 4 + 1,
        "Add": 2 + 2 * 4 + 1 + 2 * 2,  # embeddings, biases of products, residuals
        "PackedAttention": 2,
        "Gelu": 2,
    }
    assert not graph.value_info or not any(value.doc_string for value in graph.value_info)


def test_albert_stores_its_layer_once_and_its_gelu_is_one_operation(tmp_path: Path) -> None:
    result = exported(tmp_path, "token-classification", "albert", name="shared")
    graph = graph_of(result)
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Gelu"] == counts["PackedAttention"] == 2 and "Tanh" not in counts
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 1 + 2 * 4 + 1 and len(set(products)) == 1 + 4 + 1


def test_modernbert_turns_by_tables_and_looks_through_windows_in_every_other_layer(tmp_path: Path) -> None:
    graph = graph_of(exported(tmp_path, "token-classification", "modernbert"))
    counts = Counter(node.op_type for node in graph.node)
    assert counts["RotaryEmbedding"] == 4 and not {"Cos", "Sin", "Transpose", "Slice", "Split"} & set(counts)
    windows = [
        attribute.i
        for node in graph.node
        if node.op_type == "PackedAttention"
        for attribute in node.attribute
        if attribute.name == "local_window_size"
    ]
    assert windows == [-1, 8]


def test_a_classifier_computes_its_last_layer_for_the_rows_it_reads(tmp_path: Path) -> None:
    graph = graph_of(exported(tmp_path, "text-classification", "bert"))
    names = [node.op_type for node in graph.node]
    last = len(names) - 1 - names[::-1].index("PackedAttention")
    picked = next(
        node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[0] == graph.node[last].output[0]
    )
    reader = next(node for node in graph.node if picked in node.input)
    assert reader.op_type == "MatMul" and names[last:].count("Gather") == 2  # attention's rows and the residual's


def test_the_mean_of_modernberts_classifier_is_that_of_each_sequence(tmp_path: Path) -> None:
    source = save_encoder("text-classification", "modernbert", tmp_path / "source", classifier_pooling="mean")
    result = export(source, tmp_path / "repository", "text-classification")
    assert Counter(node.op_type for node in graph_of(result).node)["SegmentMean"] == 1
    assert [spec.name for spec in result.manifest.graphs["encoder"].inputs] == [
        "input_ids",
        "position_ids",
        "cumulative_sequence_length",
    ]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_pooled_as_the_sentence_transformers_files_say(tmp_path: Path, pooling: str) -> None:
    source = save_encoder("feature-extraction", "bert", tmp_path / "source")
    add_sentence_transformers_files(source, pooling=pooling)
    result = export(source, tmp_path / "repository", "feature-extraction")
    spec = result.manifest.encoder
    assert spec is not None and spec.pooling == pooling and spec.normalize and result.notes == ()
    assert ("SegmentMean" in {node.op_type for node in graph_of(result).node}) == (pooling == "mean")
    assert [value.shape for value in result.manifest.graphs["encoder"].outputs] == [("num_seqs", 32)]
