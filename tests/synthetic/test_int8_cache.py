"""What an int8 KV cache costs is found in the source: it reads keys and values as the served model will."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fastserve.export.int8_cache import cache_cost, cache_rounded
from fastserve.export.options import ExportOptions
from fastserve.export.perplexity import ServedLanguageModel, TextWindow
from fastserve.export.text_generation import export_model

TOKENS = tuple(int(token) for token in np.random.default_rng(3).integers(3, 200, 70))


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def folder(request: pytest.FixtureRequest, decoder_sources: Callable[[str], Path]) -> Path:
    return decoder_sources(request.param)


@pytest.fixture
def source(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def log_predictions(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([TOKENS])).logits[0].log_softmax(-1)


def test_the_source_with_rounded_keys_and_values_says_what_a_served_model_with_an_int8_cache_does(folder, source, tmp_path):
    result = export_model(str(folder), ExportOptions(tmp_path, name="model"))
    served = ServedLanguageModel(result.directory, result.manifest, kv_cache_dtype="int8")
    scores, _ = served.read(TextWindow(TOKENS, 1))
    exact = log_predictions(source)
    with cache_rounded():
        moved = log_predictions(source)
    wanted = torch.tensor(TOKENS[1:])[:, None]
    expected, before = (rows[:-1].gather(1, wanted)[:, 0].double().numpy() for rows in (moved, exact))
    assert np.abs(scores - expected).max() < 0.1 * np.abs(before - expected).max()


def test_it_is_the_mean_divergence_and_the_source_is_left_as_it_was(source):
    exact = log_predictions(source)
    with cache_rounded():
        moved = log_predictions(source)
    expected = float((exact.exp() * (exact - moved)).sum()) / len(TOKENS)
    assert 0 < expected == pytest.approx(cache_cost(source, [TOKENS]), rel=1e-3)
    assert torch.equal(log_predictions(source), exact)
