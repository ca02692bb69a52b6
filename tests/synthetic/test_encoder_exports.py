"""Every family and task of encoders: the exported graph, run packed by the runtime, is the source model run text by text."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from fastserve.config import ENCODER_TASKS
from fastserve.core.encoding import TokenSequence
from fastserve.errors import ProofFailed, UnsupportedModel
from fastserve.export.encoders import packed_attention
from fastserve.export.exporters import export_any
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.worker.encoder_runner import EncoderRunner
from tests.synthetic.tiny_encoders import AUTO_CLASSES, LABELS, MARKERS, TINY_ENCODERS, save_encoder
from tests.synthetic.tiny_models import llama_config, save_model

FAMILIES_WITH_TYPES = {"bert", "electra", "albert"}
TOLERANCE = 1e-4
LENGTHS = (1, 2, 17, 64, 128)

Exports = dict[tuple[str, str], tuple[Path, ExportResult]]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Every family as a tagger, and every task as a BERT, exported once: (folder of the source, result) by (task, family)."""
    directory = tmp_path_factory.mktemp("encoders")
    wanted = {("token-classification", family) for family in TINY_ENCODERS} | {(task, "bert") for task in ENCODER_TASKS}
    made: Exports = {}
    for task, family in sorted(wanted):
        source = save_encoder(task, family, directory / f"{task}-{family}")
        options = ExportOptions(directory / "repository", task=task, name=f"{task}-{family}")
        made[task, family] = source, export_any(str(source), options)
    return made


def sequences_of(result: ExportResult, seed: int = 0) -> list[TokenSequence]:
    """Random ids of mixed lengths, with two token types where the graph takes them, and two wanted rows each."""
    generator = np.random.default_rng(seed)
    spec = result.manifest.encoder
    assert spec is not None
    takes_types = "token_type_ids" in {each.name for each in result.manifest.graphs["encoder"].inputs}
    made = []
    for length in LENGTHS:
        ids = tuple(generator.integers(5, result.manifest.model.vocab_size, length).tolist())
        types = tuple(int(index > length // 2) for index in range(length)) if takes_types else ()
        made.append(TokenSequence(ids, types, (0, length - 1) if spec.output == "row" else ()))
    return made


def answer_of_the_source(model: torch.nn.Module, task: str, sequence: TokenSequence) -> np.ndarray:
    """The rows the graph should give, by one torch run over this sequence alone."""
    inputs = {
        "input_ids": torch.tensor([sequence.token_ids]),
        "attention_mask": torch.ones(1, len(sequence.token_ids), dtype=torch.long),
    }
    if sequence.token_type_ids:
        inputs["token_type_ids"] = torch.tensor([sequence.token_type_ids])
    with torch.no_grad():
        output = model(**inputs)
    if task == "question-answering":
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=1).numpy()
    if task == "feature-extraction":
        return output.last_hidden_state[0].mean(dim=0).numpy()
    rows = output.logits[0].numpy()
    return rows[list(sequence.rows)] if sequence.rows else rows


def cases() -> list[tuple[str, str]]:
    return sorted({("token-classification", family) for family in TINY_ENCODERS} | {(task, "bert") for task in ENCODER_TASKS})


@pytest.mark.parametrize(("task", "family"), cases())
def test_packed_rows_are_those_of_the_source_and_the_same_alone(exports: Exports, task: str, family: str) -> None:
    source, result = exports[task, family]
    model = AUTO_CLASSES[task].from_pretrained(source, attn_implementation="eager").eval()
    runner = EncoderRunner(result.directory, result.manifest, num_threads=1)
    sequences = sequences_of(result)
    together = runner.run(sequences)
    for sequence, rows in zip(sequences, together, strict=True):
        np.testing.assert_allclose(rows, answer_of_the_source(model, task, sequence), atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_array_equal(runner.run([sequence])[0], rows)


@pytest.mark.parametrize(("task", "family"), cases())
def test_the_manifest_says_what_the_tasks_need(exports: Exports, task: str, family: str) -> None:
    manifest = exports[task, family][1].manifest
    spec = manifest.encoder
    assert spec is not None and manifest.task == task and manifest.tokenizer is not None
    assert spec.labels == LABELS.get(task, ())
    assert spec.output == {"token-classification": "token", "question-answering": "token", "fill-mask": "row"}.get(
        task, "sequence"
    )
    assert spec.markers == (MARKERS if task == "relation-extraction" else ())
    assert (manifest.tokenizer.mask_token_id is not None) or task != "fill-mask"
    assert manifest.position_offset == (2 if family in ("roberta", "xlm-roberta", "camembert") else 0)
    names = {each.name for each in manifest.graphs["encoder"].inputs}
    assert ("token_type_ids" in names) == (family in FAMILIES_WITH_TYPES)


def test_the_graph_attends_once_a_layer_and_nothing_else_mixes_tokens(exports: Exports) -> None:
    for (_, family), (_, result) in exports.items():
        graph = onnx.load(str(result.directory / "model.onnx"), load_external_data=False).graph
        operators = [node.op_type for node in graph.node]
        assert operators.count("PackedAttention") == TINY_ENCODERS[family]().num_hidden_layers
        assert not {"Softmax", "Expand", "Range", "Where", "Dropout"} & set(operators)


def test_the_measured_number_of_tokens_is_in_the_configuration(exports: Exports) -> None:
    for (task, _), (_, result) in exports.items():
        config = (result.model_directory / "config.pbtxt").read_text(encoding="utf-8")
        assert '\nparameters { key: "max_batched_tokens"' in config and f'string_value: "{task}"' in config


@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_int8_is_near_the_source_and_does_not_depend_on_neighbours(exports: Exports, tmp_path: Path, task: str) -> None:
    source, plain = exports[task, "bert"]
    result = export_any(str(source), ExportOptions(tmp_path, task=task, name="quantised", dtype="int8"))
    operators = [node.op_type for node in onnx.load(str(result.directory / "model.onnx"), load_external_data=False).graph.node]
    assert operators.count("QuantizedMatMul") >= 4 * TINY_ENCODERS["bert"]().num_hidden_layers
    sequences = sequences_of(plain)
    wanted = EncoderRunner(plain.directory, plain.manifest, num_threads=1).run(sequences)
    runner = EncoderRunner(result.directory, result.manifest, num_threads=1)
    found = runner.run(sequences)
    deviation = np.concatenate([rows.ravel() for rows in wanted]).std()
    errors = [float(np.abs(left - right).max()) for left, right in zip(found, wanted, strict=True)]
    assert 0 < max(errors) < deviation
    for sequence, rows in zip(sequences, found, strict=True):
        np.testing.assert_array_equal(runner.run([sequence])[0], rows)


def test_a_window_lost_on_the_way_to_the_graph_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_encoder("token-classification", "modernbert", tmp_path / "source")
    monkeypatch.setattr(packed_attention, "reach", lambda layer: -1)
    with pytest.raises(ProofFailed, match="max_abs_difference"):
        export_any(str(source), ExportOptions(tmp_path / "repository", task="token-classification"))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (transformers.DebertaV2Config, "disentangled attention"),
        (transformers.MPNetConfig, "relative position bias"),
        (transformers.T5Config, "encoder-decoder"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(tmp_path: Path, make: type, reason: str) -> None:
    make().save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedModel, match=reason):
        export_any(str(tmp_path / "source"), ExportOptions(tmp_path / "repository", task="token-classification"))


def test_a_decoder_is_no_encoder(tmp_path: Path) -> None:
    source = save_model(llama_config(), tmp_path / "source")
    with pytest.raises(UnsupportedModel, match="causal decoder"):
        export_any(str(source), ExportOptions(tmp_path / "repository", task="text-classification"))


@pytest.mark.parametrize(("saved", "wanted"), itertools.permutations(["token-classification", "question-answering"], 2))
def test_a_head_for_another_task_is_refused(tmp_path: Path, saved: str, wanted: str) -> None:
    source = save_encoder(saved, "bert", tmp_path / "source")
    with pytest.raises(UnsupportedModel):
        export_any(str(source), ExportOptions(tmp_path / "repository", task=wanted))
