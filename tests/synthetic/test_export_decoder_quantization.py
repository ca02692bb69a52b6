"""int8 and int4 language models: every product is quantised, a sequence is the same alone, batched and in chunks, the loss is
measured and kept within bounds, and the graph computes what a source with rounded weights and rows computes."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn.functional import embedding
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from fastserve.errors import InvalidRequest, ToolError
from fastserve.export import decoder_quantization, text_generation
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.precision_choice import PrecisionChoice, layers_of
from fastserve.export.proof import prove, reference_run
from fastserve.export.quantization_cost import Rounding, linear_layers, measured_divergence, rounded_layers, rounded_weight
from fastserve.export.rewrites.smoothing import Smoothing, module_of
from fastserve.export.summary import summary
from tests.synthetic.test_export_decoder_families import generate_with_engine, prompts

FAMILIES = ("llama", "gpt2", "qwen2")
TIED_HEAD = "lm_head"
"""The only module of these families that is in no other; its product may have no name."""
QUANTISED = [(family, dtype) for dtype in ("int8", "int4") for family in FAMILIES]


@dataclasses.dataclass
class Made:
    """An export, what it knew and what it chose. ``factors``: of smoothing, by the name of the product."""

    result: ExportResult
    ground: decoder_quantization.QuantizationGround
    choice: PrecisionChoice
    factors: dict[str, torch.Tensor]


Exports = Callable[[str, str], Made]


@pytest.fixture(scope="module")
def exports(decoder_sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Of a family and a dtype, made when first asked for, with any loss allowed."""
    folder = tmp_path_factory.mktemp("quantised")
    made: dict[tuple[str, str], Made] = {}

    def get(family: str, dtype: str) -> Made:
        if (family, dtype) not in made:
            options = ExportOptions(folder, name=f"{family}-{dtype}", dtype=dtype, max_perplexity_rise=100)
            made[family, dtype] = export_watched(decoder_sources(family), options)
        return made[family, dtype]

    return get


def export_watched(source: Path, options: ExportOptions) -> Made:
    made: list[tuple[decoder_quantization.QuantizationGround, PrecisionChoice]] = []
    factors: dict[str, torch.Tensor] = {}

    def quantize_decoder(*arguments: Any) -> PrecisionChoice:
        choice = decoder_quantization.quantize_decoder(*arguments)
        made.append((arguments[2], choice))
        return choice

    def smooth(graph: Any, smoothing: Smoothing, chosen: Any) -> None:
        names = [module_of(product) for product in smoothing.products]
        factors.update({TIED_HEAD if "." not in name else name: torch.from_numpy(chosen) for name in names})
        original(graph, smoothing, chosen)

    original = decoder_quantization.smooth
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_generation, "quantize_decoder", quantize_decoder)
        patch.setattr(decoder_quantization, "smooth", smooth)
        result = export_model(source, options)
    return Made(result, *made[0], factors)


def export_model(source: Path, options: ExportOptions) -> ExportResult:
    return text_generation.export_model(str(source), options)


def operators(result: ExportResult) -> dict[str, int]:
    """How many nodes there are of each; products by weights of 4 bits apart."""
    nodes = onnx.load(result.directory / "model.onnx", load_external_data=False).graph.node
    bits = [next((each.i for each in node.attribute if each.name == "weight_bits"), 8) for node in nodes]
    names = [f"{node.op_type} 4" if number == 4 else node.op_type for node, number in zip(nodes, bits, strict=True)]
    return dict(collections.Counter(names))


@pytest.mark.parametrize(("family", "dtype"), QUANTISED)
def test_every_product_is_quantised_and_no_fp32_copy_stays(family: str, dtype: str, exports: Exports) -> None:
    result = exports(family, dtype).result
    found = operators(result)
    in_4_bits = 4 * 2 if dtype == "int4" else 0
    assert found.get("QuantizedMatMul 4", 0) == in_4_bits
    assert found["QuantizedMatMul"] == 4 * 2 + 1 - in_4_bits  # the head is never in 4 bits
    assert not {"MatMul", "Gemm", "PrepackedMatMul"} & set(found)
    assert found.get("QuantizedGather", 0) == (family != "qwen2")  # the embedding is the head's weight
    assert not {"RowNorm", "GatedActivation"} & set(found)  # products compute their rows themselves
    assert result.manifest.model.dtype == dtype
    if family == "llama":
        assert (result.directory / "model.onnx.data").stat().st_size < 2 * result.manifest.model.num_parameters
    assert 'key: "kv_cache_dtype" value: { string_value: "int8" }' in (result.model_directory / "config.pbtxt").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_4_bits_take_half_the_bytes_of_the_products_in_layers(family: str, exports: Exports) -> None:
    sizes = {dtype: (exports(family, dtype).result.directory / "model.onnx.data").stat().st_size for dtype in ("int8", "int4")}
    choice = exports(family, "int4").choice
    weights = sum(choice.sizes[name] for name in choice.products_in("int4"))
    assert sizes["int8"] - sizes["int4"] == pytest.approx(3.5 / 8 * weights, rel=0.02)


@pytest.mark.parametrize(("family", "dtype"), QUANTISED)
def test_tokens_are_the_same_alone_and_in_a_crowd(family: str, dtype: str, exports: Exports) -> None:
    result, asked = exports(family, dtype).result, prompts(family)
    assert result.manifest.proof["max_abs_difference_alone_batched"] == 0.0
    assert result.manifest.proof["max_abs_difference_packed_chunked"] == 0.0
    alone = [generate_with_engine(result, [prompt])[0] for prompt in asked]
    assert generate_with_engine(result, asked) == alone


def load(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def roundings_of(model: Any, made: Made) -> dict[str, Rounding]:
    """How the export chose to round the source's layers."""
    layers, precisions = linear_layers(model), made.choice.precisions
    return {
        name: Rounding(
            precisions[product],
            made.factors.get(product, torch.ones(layers[name].weight.shape[0 if isinstance(layers[name], Conv1D) else 1])),
        )
        for product, names in layers_of(list(precisions), list(layers)).items()
        for name in names
    }


@pytest.mark.parametrize(("family", "dtype"), QUANTISED)
def test_the_graph_computes_what_the_source_does_with_weights_and_rows_rounded(
    family: str, dtype: str, exports: Exports, decoder_sources: Callable[[str], Path]
) -> None:
    made, model = exports(family, dtype), load(decoder_sources(family))
    roundings = roundings_of(model, made)
    if model.lm_head.weight is model.get_input_embeddings().weight:
        table = rounded_weight(model.lm_head, roundings["lm_head"]) / roundings["lm_head"].factors
        model.get_input_embeddings().forward = lambda token_ids: embedding(token_ids, table)
    with rounded_layers(model, roundings):
        reference = reference_run(model, 256, set())
    measures = prove(made.result.directory, made.result.manifest, reference)
    assert measures["relative_error"] < 0.01, "but for rows that fall on the other side when they are rounded"
    assert made.result.manifest.proof["relative_error"] > (0.1 if dtype == "int4" else 0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_to_expect_of_4_bits_is_no_less_than_the_divergence_of_the_source_with_all_of_it_rounded(
    family: str, exports: Exports, decoder_sources: Callable[[str], Path]
) -> None:
    made, model = exports(family, "int4"), load(decoder_sources(family))
    roundings = roundings_of(model, made)
    measured = measured_divergence(model, made.ground.calibration, lambda: rounded_layers(model, roundings))
    expected = math.log1p(made.choice.rise) - made.ground.cache_cost
    assert 0.999 * measured < expected < 1.5 * measured


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_loss_is_measured_beside_fp32_and_shown(dtype: str, exports: Exports) -> None:
    result = exports("llama", dtype).result
    proof = result.manifest.proof
    assert proof["quality_tokens"] > 500
    assert proof["perplexity"] == pytest.approx(proof["perplexity_fp32"], rel=0.2)
    assert 0.5 < proof["greedy_agreement"] <= 1
    rows = shown(result)
    assert {f"{dtype} on a text", f"{dtype}, expected"} <= set(rows)
    assert not {"greedy tokens", "kept in fp32"} & set(rows)
    assert result.manifest.model.fp32_modules == ()
    if dtype == "int4":
        share = proof["int4_weights_share"]
        assert rows["in 4 bits"] == f"8 products, {share:.1%} of the products' weights"
        assert rows["kept in int8"] == f"{1 - share:.1%} of the products' weights: lm_head"
        assert result.manifest.model.int8_modules == ("lm_head",)


def shown(result: ExportResult) -> dict[str, str]:
    labels, texts = (list(column.cells) for column in summary(result).columns)
    return dict(zip(labels, map(str, texts), strict=True))


@pytest.mark.parametrize(("family", "dtype"), QUANTISED)
def test_what_every_product_costs_is_known(family: str, dtype: str, exports: Exports) -> None:
    proof = exports(family, dtype).result.manifest.proof
    assert proof["products_of_unknown_loss"] == 0
    assert 0 < proof["expected_perplexity_rise"] < 0.2
    assert dtype == "int8" or proof["expected_perplexity_rise"] > (
        5 * exports(family, "int8").result.manifest.proof["expected_perplexity_rise"]
    )


def export(source: Path, folder: Path, dtype: str = "int8", **options: Any) -> ExportResult:
    return export_model(source, ExportOptions(folder, name="other", dtype=dtype, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_costs_most_stays_fp32_until_no_more_is_lost_than_asked_for(
    family: str, exports: Exports, decoder_sources: Callable[[str], Path], tmp_path: Path
) -> None:
    rise = exports(family, "int8").result.manifest.proof["expected_perplexity_rise"]
    result = export(decoder_sources(family), tmp_path, max_perplexity_rise=100 * rise / 2)
    kept, proof = result.manifest.model.fp32_modules, result.manifest.proof
    found = operators(result)
    assert 0 < proof["expected_perplexity_rise"] <= rise / 2
    assert len(kept) == found["PrepackedMatMul"] == 9 - found["QuantizedMatMul"]
    assert 0 < proof["fp32_weights_share"] < 1
    assert result.manifest.graphs["decoder"].reordered_bytes == 0
    assert proof["max_abs_difference_alone_batched"] == 0.0
    assert all(name in shown(result)["kept in fp32"] for name in kept)


def test_of_a_model_in_4_bits_it_gets_8_bits_first(
    exports: Exports, decoder_sources: Callable[[str], Path], tmp_path: Path
) -> None:
    rises = [exports("llama", dtype).result.manifest.proof["expected_perplexity_rise"] for dtype in ("int8", "int4")]
    allowed = sum(rises) / 2
    result = export(decoder_sources("llama"), tmp_path, "int4", max_perplexity_rise=100 * allowed)
    model, found, proof = result.manifest.model, operators(result), result.manifest.proof
    assert 0 < proof["expected_perplexity_rise"] <= allowed
    assert 1 < len(model.int8_modules) == found["QuantizedMatMul"] < 9
    assert found["QuantizedMatMul 4"] == 9 - found["QuantizedMatMul"]
    assert model.fp32_modules == () and "PrepackedMatMul" not in found
    assert proof["max_abs_difference_alone_batched"] == proof["max_abs_difference_packed_chunked"] == 0.0


def test_products_whose_cost_is_not_known_are_in_8_bits(decoder_sources: Callable[[str], Path], tmp_path: Path) -> None:
    result = export(decoder_sources("mixtral"), tmp_path, "int4")
    assert result.manifest.proof["products_of_unknown_loss"] > 0
    assert [name for name in result.manifest.model.int8_modules if "gate" in name] == [
        "model.layers.0.mlp.gate",  # routers, which are no linear layers of torch's
        "model.layers.1.mlp.gate",
    ]
    assert "products of unknown loss" in shown(result)["int4, expected"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_named_modules_stay_fp32_and_the_text_may_be_ones_own(
    dtype: str, decoder_sources: Callable[[str], Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text of one's own, read to the end. " * 5)
    kept = ("lm_head", "layers.0.")
    result = export(decoder_sources("qwen2"), tmp_path, dtype, keep_fp32=kept, quality_text=text, max_perplexity_rise=100)
    found = operators(result)
    assert (found["PrepackedMatMul"], found["QuantizedMatMul 4" if dtype == "int4" else "QuantizedMatMul"]) == (4 + 1, 4)
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
