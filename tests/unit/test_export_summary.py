"""What a person reads of a quantised export: how many bits its products have, and which have more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fastserve.export.options import ExportResult
from fastserve.export.summary import summary
from fastserve.manifest import ModelManifest
from tests.doubles import make_manifest

MEASURES = (
    "rows_compared",
    "max_abs_logit_difference",
    "max_abs_logit_difference_chunked",
    "max_abs_logit_difference_kv_fp16",
    "max_abs_logit_difference_kv_int8",
    "logit_scale",
    "max_abs_difference_alone_batched",
    "perplexity_rise_error",
    "greedy_agreement",
    "quality_tokens",
    "expected_perplexity_rise_of_cache",
    "products_of_unknown_loss",
)


def shown(**spec: object) -> dict[str, str]:
    """The rows about an int4 model, by label."""
    made = make_manifest()
    proof = dict.fromkeys(MEASURES, 0.0) | {"perplexity": 10.5, "perplexity_fp32": 10.0, "expected_perplexity_rise": 0.04}
    proof |= {"int4_products": 90.0, "int4_weights_share": 0.7, "int8_weights_share": 0.25, "fp32_weights_share": 0.05}
    model = dataclasses.replace(made.model, dtype="int4", **spec)  # type: ignore[arg-type]
    manifest: ModelManifest = dataclasses.replace(made, model=model, proof=proof)
    labels, texts = (list(column.cells) for column in summary(ExportResult(Path("models/m/1"), manifest, {})).columns)
    return dict(zip(labels, map(str, texts), strict=True))


def test_shares_of_the_weights_and_the_names_of_what_has_more_than_4_bits_are_shown() -> None:
    rows = shown(int8_modules=("lm_head", "layers.3.mlp"), fp32_modules=("layers.0.mlp",))
    assert rows["in 4 bits"] == "90 products, 70.0% of the products' weights"
    assert rows["kept in int8"] == "25.0% of the products' weights: lm_head, layers.3.mlp"
    assert rows["kept in fp32"] == "5.0% of the products' weights: layers.0.mlp"
    assert rows["int4 on a text"].startswith("perplexity 10.500, fp32 10.000 (+5.0%, ")
    assert rows["int4, expected"] == "perplexity +4.0%, by the KV cache alone +0.0%"


def test_nothing_is_said_of_precisions_that_nothing_has() -> None:
    assert not {"kept in int8", "kept in fp32"} & set(shown())


@pytest.mark.parametrize("model", ["layers", "transformer.h"])
def test_of_many_modules_those_of_layers_are_named_together(model: str) -> None:
    names = [f"{model}.{layer}.mlp.down_proj" for layer in (0, 1, 2, 3, 7, 9, 10)] + [f"{model}.0.attn.c_proj", "lm_head"]
    rows = shown(int8_modules=tuple(names))
    assert rows["kept in int8"].endswith(f"weights: {model}.{{0-3,7,9-10}}.mlp.down_proj, {model}.{{0}}.attn.c_proj, lm_head")
