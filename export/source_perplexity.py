"""What a language model in its source form says of a text's tokens, run by transformers: what a served one is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastserve.errors import ToolError
from fastserve.export.guards import check_config, check_model
from fastserve.export.perplexity import ScoreArray, TextWindow
from fastserve.export.quiet import quiet_libraries
from fastserve.export.rotary import context_limit
from fastserve.export.source import LoadedModel, load, load_config, resolve


class SourceLanguageModel:
    """One causal language model in memory, in float32 on the CPU. Not thread-safe."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._label = loaded.source.label
        self._max_length = context_limit(loaded.model.config)

    def check(self, text: str, token_ids: Sequence[int], window_length: int) -> None:
        """Raise ToolError where figures cannot be compared: the source reads ``text`` as other tokens than the served model's
        ``token_ids``, or cannot take a window of ``window_length`` tokens at once."""
        with quiet_libraries():
            own = self._tokenizer(text, verbose=False)["input_ids"]
        if own != list(token_ids):
            raise ToolError(
                f"{self._label} reads the text as {len(own)} tokens that are not the served model's {len(token_ids)}: "
                "it is not the model the served one was made from"
            )
        if self._max_length < window_length:
            raise ToolError(
                f"{self._label} takes {self._max_length} tokens at once, the served model's windows have {window_length}: "
                "it is not the model the served one was made from"
            )

    def score(self, window: TextWindow) -> ScoreArray:
        """Natural log-probability of each scored token, [num_scored]: one forward pass over the window, no cache."""
        tokens = torch.tensor([window.token_ids])  # [1, num_tokens]
        with torch.inference_mode():
            kept = self._model(input_ids=tokens, use_cache=False, logits_to_keep=window.num_scored + 1).logits[0]
            wanted = tokens[0, window.num_context :]
            losses = torch.nn.functional.cross_entropy(kept[:-1].float(), wanted, reduction="none")  # [num_scored]
        return -losses.numpy().astype(np.float64)


def load_language_model(directory: str) -> SourceLanguageModel:
    """The model ``directory`` (or .gguf file, or hub id). Raises ModelNotFound or UnsupportedModel, as an export of it would."""
    with quiet_libraries():
        source = resolve(directory)
        config = load_config(source)
        check_config(config)
        loaded = load(source, config)
        check_model(loaded.model)
        return SourceLanguageModel(loaded)
