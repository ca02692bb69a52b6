"""int8 language models: every product is int8, a sequence is the same alone, batched and in chunks, the loss is measured."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastserve.errors import InvalidRequest, ToolError
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.summary import summary
from fastserve.export.text_generation import export_model
from tests.synthetic.test_export_decoder_families import generate_with_engine, prompts

FAMILIES = ("llama", "gpt2", "qwen2")


@pytest.fixture(scope="module")
def int8_exports(decoder_sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ExportResult]:
    folder = tmp_path_factory.mktemp("int8")
    made: dict[str, ExportResult] = {}

    def get(family: str) -> ExportResult:
        if family not in made:
            options = ExportOptions(folder, name=family, dtype="int8", max_perplexity_rise=100)
            made[family] = export_model(str(decoder_sources(family)), options)
        return made[family]

    return get


def operators(result: ExportResult) -> dict[str, int]:
    graph = onnx.load(result.directory / "model.onnx", load_external_data=False).graph
    return dict(collections.Counter(node.op_type for node in graph.node))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_product_is_int8_and_no_fp32_copy_stays(family: str, int8_exports: Callable[[str], ExportResult]) -> None:
    result = int8_exports(family)
    found = operators(result)
    assert found["QuantizedMatMul"] == 4 * 2 + 1
    assert not {"MatMul", "Gemm", "PrepackedMatMul"} & set(found)
    assert found.get("QuantizedGather", 0) == (family != "qwen2")  # the embedding is the head's weight
    assert not {"RowNorm", "GatedActivation"} & set(found)  # products compute their rows themselves
    assert result.manifest.model.dtype == "int8"
    if family == "llama":
        assert (result.directory / "model.onnx.data").stat().st_size < 2 * result.manifest.model.num_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_same_alone_and_in_a_crowd(family: str, int8_exports: Callable[[str], ExportResult]) -> None:
    result, asked = int8_exports(family), prompts(family)
    assert result.manifest.proof["max_abs_difference_alone_batched"] == 0.0
    assert result.manifest.proof["max_abs_difference_packed_chunked"] == 0.0
    alone = [generate_with_engine(result, [prompt])[0] for prompt in asked]
    assert generate_with_engine(result, asked) == alone


def test_the_loss_is_measured_beside_fp32_and_shown(int8_exports: Callable[[str], ExportResult]) -> None:
    result = int8_exports("llama")
    proof = result.manifest.proof
    assert proof["quality_tokens"] > 500
    assert proof["perplexity"] == pytest.approx(proof["perplexity_fp32"], rel=0.2)
    assert 0.5 < proof["greedy_agreement"] <= 1
    labels = list(summary(result).columns[0].cells)
    assert {"int8 on a text", "int8, expected"} <= set(labels)
    assert not {"greedy tokens", "kept in fp32"} & set(labels)
    assert result.manifest.model.fp32_modules == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_every_product_costs_is_known(family: str, int8_exports: Callable[[str], ExportResult]) -> None:
    proof = int8_exports(family).manifest.proof
    assert proof["products_of_unknown_loss"] == 0
    assert 0 < proof["expected_perplexity_rise"] < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_costs_most_stays_fp32_until_no_more_is_lost_than_asked_for(
    family: str, int8_exports: Callable[[str], ExportResult], decoder_sources: Callable[[str], Path], tmp_path: Path
) -> None:
    rise = int8_exports(family).manifest.proof["expected_perplexity_rise"]
    result = export(decoder_sources(family), tmp_path, max_perplexity_rise=100 * rise / 2)
    kept, proof = result.manifest.model.fp32_modules, result.manifest.proof
    found = operators(result)
    assert 0 < proof["expected_perplexity_rise"] <= rise / 2
    assert len(kept) == found["PrepackedMatMul"] == 9 - found["QuantizedMatMul"]
    assert 0 < proof["fp32_weights_share"] < 1
    assert result.manifest.graphs["decoder"].reordered_bytes == 0
    assert proof["max_abs_difference_alone_batched"] == 0.0
    rows = dict(zip(*(column.cells for column in summary(result).columns), strict=True))
    assert all(name in str(rows["kept in fp32"]) for name in kept)


def export(source: Path, folder: Path, **options: Any) -> ExportResult:
    return export_model(str(source), ExportOptions(folder, name="other", dtype="int8", **options))


def test_named_modules_stay_fp32_and_the_text_may_be_ones_own(decoder_sources: Callable[[str], Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text of one's own, read to the end. " * 5)
    result = export(
        decoder_sources("qwen2"), tmp_path, keep_fp32=("lm_head", "layers.0."), quality_text=text, max_perplexity_rise=100
    )
    found = operators(result)
    assert (found["PrepackedMatMul"], found["QuantizedMatMul"]) == (4 + 1, 4)
    assert 50 < result.manifest.proof["quality_tokens"] < 200
    assert np.isfinite(result.manifest.proof["perplexity"])


def test_the_head_of_a_model_with_tied_embeddings_can_be_kept_by_its_name(
    decoder_sources: Callable[[str], Path], tmp_path: Path
) -> None:
    result = export(decoder_sources("llama"), tmp_path, keep_fp32=("lm_head",), max_perplexity_rise=100)
    assert result.manifest.model.fp32_modules == ("lm_head",)
    assert operators(result)["QuantizedMatMul"] == 8


def test_what_cannot_be_kept_or_read_is_named(decoder_sources: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"keep_fp32: got 'decoder', allowed: .*lm_head"):
        export(decoder_sources("qwen2"), tmp_path, keep_fp32=("decoder",))
    with pytest.raises(InvalidRequest, match=r"quality_text: got '.*, allowed: a readable UTF-8 text file .*none\.txt"):
        export(decoder_sources("qwen2"), tmp_path, quality_text=tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(ToolError, match="at least 2"):
        export(decoder_sources("qwen2"), tmp_path, quality_text=tmp_path / "short.txt")
    assert not (tmp_path / "other").exists()
