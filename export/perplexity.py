"""The perplexity of an exported language model on a text: its own graph, run by the runtime's own classes. Needs no torch.

A text longer than the model's context is read in windows that overlap by half. A window has up to
``min(max_model_len, 1024)`` tokens, and each begins half a window after the one before it. Its first half, which the window
before has scored, is context only, so every token is scored exactly once, and after the first window with at least half a
window before it. The text's very first token has nothing before it: it is read, not scored. Special tokens that the tokenizer
puts around a text are tokens of it like any other (they stand at its ends, not at those of every window).

Perplexity is exp of the mean negative log-probability of the scored tokens. Other windows give other figures: compare only
what was measured with the same ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastserve.errors import ManifestError, ToolError
from fastserve.manifest import ModelManifest
from fastserve.text.tokenizer import Tokenizer
from fastserve.worker.batch import Int64Array, SequenceInput, pack
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.model_runner import ModelRunner

FloatArray = npt.NDArray[np.float32]
ScoreArray = npt.NDArray[np.float64]
TokenArray = npt.NDArray[np.int64]

LONGEST_WINDOW = 1024
"""Tokens of a window of a model with a longer context: what most published figures of small models are measured with."""
_BLOCK_SIZE = 16
_CHUNK = 256
"""Tokens of one run: a row of logits is as long as the vocabulary, so a whole window's may be a gigabyte."""


@dataclasses.dataclass(frozen=True, slots=True)
class TextWindow:
    """A piece of a text that is run as one sequence. The first ``num_context`` tokens, at least one, are not scored."""

    token_ids: tuple[int, ...]
    num_context: int

    @property
    def num_scored(self) -> int:
        return len(self.token_ids) - self.num_context


def window_length(max_model_len: int) -> int:
    """Tokens of a full window."""
    return min(max_model_len, LONGEST_WINDOW)


def cut_text(token_ids: Sequence[int], length: int) -> list[TextWindow]:
    """The windows of a text, as the module says. ``length``: of a full one, at least 2; the last may be shorter.

    Raises ToolError for a text in which there is nothing to score.
    """
    if len(token_ids) < 2:
        raise ToolError(f"the text has {len(token_ids)} tokens, allowed: at least 2 (the first only predicts the second)")
    overlap = length // 2
    windows = [TextWindow(tuple(token_ids[:length]), 1)]
    for begin in range(length - overlap, len(token_ids) - overlap, length - overlap):
        windows.append(TextWindow(tuple(token_ids[begin : begin + length]), overlap))
    return windows


def perplexity(log_probabilities: ScoreArray) -> float:
    """Of all scored tokens, [num_scored]; infinite where it is too large for a number, NaN where one of them is."""
    mean = -float(log_probabilities.mean())
    return math.exp(mean) if not mean > math.log(np.finfo(np.float64).max) else math.inf


class ServedLanguageModel:
    """One exported text-generation model. Not thread-safe."""

    def __init__(self, directory: Path, manifest: ModelManifest, *, kv_cache_dtype: str = "fp32") -> None:
        """``directory``: the version folder with the files of ``manifest``. Raises ManifestError, ConfigError or ToolError."""
        if manifest.cache is None or manifest.tokenizer is None or "decoder" not in manifest.graphs:
            raise ManifestError(f"{directory}: {manifest.task}, allowed: a model with a decoder, its cache and a tokenizer")
        self._tokenizer = Tokenizer(directory, manifest.tokenizer)
        self._runner = ModelRunner(directory, manifest, kv_cache_dtype=kv_cache_dtype)
        self._position_offset = manifest.position_offset
        self.window_length = window_length(manifest.model.max_model_len)
        num_blocks = -(-self.window_length // _BLOCK_SIZE)
        self._block_table = range(1, num_blocks + 1)  # block 0 stays empty
        self._cache = KVCache(manifest.cache, num_blocks + 1, _BLOCK_SIZE, kv_cache_dtype)

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a whole text, special tokens included."""
        return self._tokenizer.encode(text)

    def score(self, window: TextWindow) -> ScoreArray:
        """Natural log-probability of each scored token, [num_scored]. Raises StepFailed."""
        return self.read(window)[0]

    def read(self, window: TextWindow) -> tuple[ScoreArray, TokenArray]:
        """As :meth:`score`, and the likeliest token at the place of each, [num_scored]."""
        tokens = np.array(window.token_ids, np.int64)  # [num_tokens]
        parts, likeliest = [], []
        for begin in range(0, len(tokens) - 1, _CHUNK):  # nothing is asked of the last token
            end = min(begin + _CHUNK, len(tokens) - 1)
            asked = range(max(begin, window.num_context - 1), end)  # the row of a token predicts the next one
            logits = self._run(window.token_ids[begin:end], begin, len(asked))
            parts.append(_log_probabilities(logits, tokens[asked.start + 1 : end + 1]) if asked else np.empty(0))
            likeliest.append(logits.argmax(axis=1))
        return np.concatenate(parts), np.concatenate(likeliest)

    def _run(self, chunk: tuple[int, ...], num_computed: int, num_rows: int) -> FloatArray:
        """Logits of the chunk's last ``num_rows`` tokens, [num_rows, vocab_size]; overwritten by the next run."""
        inputs = [SequenceInput(chunk, num_computed, self._block_table, samples=True)]
        batch = pack(inputs, _BLOCK_SIZE, self._position_offset)
        rows = np.arange(len(chunk) - num_rows, len(chunk), dtype=np.int64)
        return self._runner.run(dataclasses.replace(batch, logits_rows=rows), self._cache)


def _log_probabilities(logits: FloatArray, token_ids: Int64Array) -> ScoreArray:
    """``logits``: [num_rows, vocab_size]; ``token_ids``: [num_rows], the token to score in each row."""
    largest = logits.max(axis=1, keepdims=True)  # [num_rows, 1]
    with np.errstate(invalid="ignore"):  # infinite logits are a damaged model's answer, not a mistake made here
        shifted = logits - largest  # [num_rows, vocab_size]
        log_sums: ScoreArray = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))  # [num_rows]
    chosen: ScoreArray = shifted[np.arange(len(token_ids)), token_ids].astype(np.float64)  # [num_rows]
    return chosen - log_sums
