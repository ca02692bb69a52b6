"""Every decoder family of the README's table: exported, equal to its source through the real engine, no feature lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fastserve.config import EngineConfig
from fastserve.core.events import TokenEvent
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.loader import load_engine
from fastserve.errors import ProofFailed
from fastserve.export.options import ExportResult
from fastserve.export.proof import prove, reference_run
from fastserve.export.rotary import freeze_frequencies, rotary_plan
from tests.doubles import FakeClock
from tests.e2e.reference import assert_equal_but_for_ties, generate
from tests.synthetic.decoder_families import FAMILIES, LONGROPE_LIMIT

Exports = Callable[[str], ExportResult]

NEW_TOKENS = 12
PROMPT_LENGTHS = (1, 13, 16, 33)
"""Longer than the windows, shorter than the least context of a family."""


def prompts(family: str) -> list[list[int]]:
    """Random ones. Where transformers computes short contexts differently, all are longer than that."""
    beyond = LONGROPE_LIMIT if FAMILIES[family].max_model_len else 0
    generator = np.random.default_rng(7)
    return [generator.integers(3, 200, beyond + length).tolist() for length in PROMPT_LENGTHS]


def generate_with_engine(result: ExportResult, requests: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of all requests at once, their prompts in chunks, up to an end-of-sequence token."""
    config = EngineConfig(max_batched_tokens=24, max_num_seqs=3, kv_cache_bytes=1 << 20, num_threads=1)
    engine = load_engine(result.directory, result.manifest, config, FakeClock())
    assert result.manifest.tokenizer is not None
    stop = frozenset(result.manifest.tokenizer.eos_token_ids)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, stop_token_ids=stop)
    for index, prompt in enumerate(requests):
        assert engine.submit(Request(index, tuple(prompt), params)) == []
    tokens: list[list[int]] = [[] for _ in requests]
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, TokenEvent), event
            tokens[event.request_id].append(event.token_id)
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_generates_what_transformers_generates(
    family: str, decoder_exports: Exports, decoder_sources: Callable[[str], Path]
) -> None:
    result = decoder_exports(family)
    model: Any = AutoModelForCausalLM.from_pretrained(decoder_sources(family), dtype=torch.float32).eval()
    asked = prompts(family)
    expected = [generate(model, prompt, NEW_TOKENS) for prompt in asked]
    assert_equal_but_for_ties(model, asked, expected, generate_with_engine(result, asked))
    assert result.manifest.proof["max_abs_difference_alone_batched"] == 0.0


@pytest.mark.parametrize(
    ("family", "windows", "share"),
    [("llama", [None] * 2, 1.0), ("mistral", [12, 12], 0.0), ("qwen2", [None, 12], 0.5), ("gemma2", [12, None, 12], 1 / 3)],
)
def test_the_manifest_says_the_windows_of_the_layers_and_the_engine_counts_by_them(
    family: str, windows: list[int | None], share: float, decoder_exports: Exports
) -> None:
    result = decoder_exports(family)
    assert result.manifest.cache is not None
    assert [layer.window for layer in result.manifest.cache.layers] == windows
    config = EngineConfig(max_batched_tokens=24, max_num_seqs=3, kv_cache_bytes=1 << 20, num_threads=1)
    engine = load_engine(result.directory, result.manifest, config, FakeClock())
    for counted in (engine.cost_model.windows, engine.scheduler.limits.windows):
        assert counted.positions(1212) == pytest.approx(12 + 1200 * share)


@pytest.mark.parametrize(
    ("family", "feature"), [(name, feature) for name, family in FAMILIES.items() for feature in family.features]
)
def test_the_proof_refuses_a_graph_and_a_source_that_differ_in_a_feature(
    family: str, feature: str, decoder_exports: Exports
) -> None:
    result = decoder_exports(family)
    model = FAMILIES[family].without(feature)
    plan = rotary_plan(model.config, FAMILIES[family].max_model_len)
    freeze_frequencies(model, plan.beyond)
    reference = reference_run(model, plan.max_model_len, set())
    with pytest.raises(ProofFailed, match="max_abs_logit_difference"):
        prove(result.directory, result.manifest, reference)


@pytest.mark.parametrize(
    ("family", "note"),
    [
        ("llama", None),
        ("gemma3_image", "only its text part is exported"),
        ("mixtral", "every token is computed by all 4 experts, of which it needs 2"),
        ("phi3", "longest context cut from 256 to the 48 tokens of its first RoPE factors"),
        ("phi3-long", "contexts of up to 48 tokens get the RoPE factors of longer ones"),
    ],
)
def test_what_differs_from_the_source_is_said(family: str, note: str | None, decoder_exports: Exports) -> None:
    notes = decoder_exports(family).notes
    assert len(notes) == (0 if note is None else 1)
    assert note is None or note in notes[0]
