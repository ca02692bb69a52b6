"""What an export in another precision loses, on a text: the source's perplexity and greedy tokens beside its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastserve.errors import InvalidRequest
from fastserve.export.perplexity import (
    ScoreArray,
    ServedLanguageModel,
    TextWindow,
    TokenArray,
    cut_text,
    perplexity,
    window_length,
)
from fastserve.export.prose import QUALITY_PROSE
from fastserve.manifest import ModelManifest


@dataclasses.dataclass(frozen=True, slots=True)
class SourceQuality:
    """What the source says of the text: natural log-probabilities and likeliest tokens of all scored tokens, [num_scored]."""

    windows: list[TextWindow]
    scores: ScoreArray
    likeliest: TokenArray


def read_text(file: Path | None) -> str:
    """The text to measure on; None: 1,300 words of ours, which no choice of the export has seen. Raises InvalidRequest."""
    if file is None:
        return QUALITY_PROSE
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("quality_text", str(file), f"a readable UTF-8 text file ({error})") from None


def source_quality(model: Any, token_ids: Sequence[int], max_model_len: int) -> SourceQuality:
    """``token_ids``: of the text. Raises ToolError for a text in which there is nothing to score."""
    windows = cut_text(token_ids, window_length(max_model_len))
    found = [_read(model, window) for window in windows]
    return SourceQuality(windows, np.concatenate([scores for scores, _ in found]), np.concatenate([best for _, best in found]))


def _read(model: Any, window: TextWindow) -> tuple[ScoreArray, TokenArray]:
    tokens = torch.tensor([window.token_ids])
    with torch.inference_mode():
        rows = model(input_ids=tokens, use_cache=False, logits_to_keep=window.num_scored + 1).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(rows.float(), tokens[0, window.num_context :], reduction="none")
    return -losses.numpy().astype(np.float64), rows.argmax(-1).numpy()


def measure_quality(directory: Path, manifest: ModelManifest, source: SourceQuality, *, kv_cache_dtype: str) -> dict[str, float]:
    """The measures for the manifest. ``kv_cache_dtype``: that the model will be served with. ``perplexity_rise_error``: standard
    error of perplexity / perplexity_fp32, as if tokens were independent. Raises StepFailed or ManifestError."""
    served = ServedLanguageModel(directory, manifest, kv_cache_dtype=kv_cache_dtype)
    found = [served.read(window) for window in source.windows]
    scores, likeliest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ratio = perplexity(scores) / perplexity(source.scores)
    return {
        "quality_tokens": float(len(scores)),
        "perplexity_fp32": perplexity(source.scores),
        "perplexity": perplexity(scores),
        "perplexity_rise_error": ratio * float((source.scores - scores).std()) / math.sqrt(len(scores)),
        "greedy_agreement": float((likeliest == source.likeliest).mean()),
    }
