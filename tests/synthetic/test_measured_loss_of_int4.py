"""The loss of 4 bits that is measured before products get their bits: of what, and what one that is no number does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastserve.export import decoder_quantization
from fastserve.export.quantization_cost import Rounding, rounded_layers
from tests.synthetic.test_export_decoder_quantization import export, operators


def test_what_stays_fp32_is_not_rounded_where_the_loss_of_4_bits_is_measured(
    decoder_sources: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded: list[str] = []

    def watched(model: Any, roundings: dict[str, Rounding]) -> Any:
        rounded.extend(roundings)
        return rounded_layers(model, roundings)

    monkeypatch.setattr(decoder_quantization, "rounded_layers", watched)
    export(decoder_sources("llama"), tmp_path, "int4", max_perplexity_rise=100, keep_fp32=("down_proj",))
    assert any("o_proj" in name for name in rounded)
    assert not any("down_proj" in name for name in rounded)


def test_a_loss_of_4_bits_that_is_no_number_leaves_nothing_in_4_bits(
    decoder_sources: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_quantization, "measured_divergence", lambda *_: math.nan)
    result = export(decoder_sources("llama"), tmp_path, "int4")
    assert operators(result)["QuantizedMatMul"] == 9
