"""What the export makes of the important families' graphs: one operation for each thing that a layer does."""

from __future__ import annotations

import collections
from collections.abc import Callable

import onnx
import pytest

from fastserve.export.options import ExportResult

LAYERS = 2  # of the tiny models, but where it is said
GATED = {
    "Gather": 3,  # the embedding, the rows that sample and their residual sum
    "RowNorm": 2 * LAYERS + 1,
    "PrepackedMatMul": 4 * LAYERS + 1,  # query, key and value; output; gate and up; down; and the head
    "PagedAttention": LAYERS,
    "GatedActivation": LAYERS,
}
TIED = GATED | {"Gather": 2, "PrepackedGather": 1}  # the embedding reads the head's weight

FUSED: dict[str, dict[str, int]] = {
    "llama": TIED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma": TIED | {"Mul": 1},  # the embedding's scale
    "phi3": GATED,
    "gpt2": {
        "Gather": 3,  # the other embedding is of positions
        "PrepackedGather": 1,
        "RowNorm": 2 * LAYERS + 1,
        "PrepackedMatMul": 4 * LAYERS + 1,
        "PagedAttention": LAYERS,
        "Gelu": LAYERS,
    },
}
ROTATED = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "gemma2", "phi", "phi3", "gpt_neox"), (1, True, False)),
    **dict.fromkeys(("qwen3", "gemma3"), (1, True, True)),
    "gpt2": (0, True, False),
    "opt": (0, True, False),
}
"""Of every attention node: ``do_rotary``, whether query, key and value are packed, whether it normalises heads."""


def operations(result: ExportResult) -> dict[str, int]:
    graph = onnx.load(result.directory / "model.onnx", load_external_data=False).graph
    return dict(collections.Counter(node.op_type for node in graph.node))


def attention_kinds(result: ExportResult) -> set[tuple[int, bool, bool]]:
    """As :data:`ROTATED` has them."""
    graph = onnx.load(result.directory / "model.onnx", load_external_data=False).graph
    found = set()
    for node in graph.node:
        if node.op_type == "PagedAttention":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            inputs = [*node.input, *[""] * 14]
            found.add((attributes["do_rotary"], not inputs[1], bool(inputs[12])))
    return found


@pytest.mark.parametrize("family", FUSED)
def test_a_layer_is_one_operation_for_each_thing_it_does(family: str, decoder_exports: Callable[[str], ExportResult]) -> None:
    assert operations(decoder_exports(family)) == FUSED[family]


@pytest.mark.parametrize("family", ROTATED)
def test_attention_gets_query_key_and_value_from_one_product_and_rotates_them(
    family: str, decoder_exports: Callable[[str], ExportResult]
) -> None:
    assert attention_kinds(decoder_exports(family)) == {ROTATED[family]}
