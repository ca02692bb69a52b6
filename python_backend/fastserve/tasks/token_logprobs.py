"""Log-probabilities as a client reads them: the JSON of Triton's vLLM backend."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

from fastserve.core.logprobs import PositionLogprobs
from fastserve.text.tokenizer import Tokenizer


def logprobs_json(positions: Sequence[PositionLogprobs], tokenizer: Tokenizer) -> str:
    """A list with an object for each position: by token id its ``logprob``, ``rank`` and ``decoded_token``, the token that
    stands there first. A logprob of -inf, which JSON does not know, is null."""
    return json.dumps(_describe(positions, tokenizer))


class PromptLogprobsText:
    """The same for a prompt, which becomes known piece by piece: null for its first token, which follows nothing, then an object
    for each other one. A long prompt makes megabytes, so each piece is written when it comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts = ["null"]

    def push(self, positions: Sequence[PositionLogprobs]) -> None:
        """Add the next tokens, at least one."""
        self._parts.append(logprobs_json(positions, self._tokenizer)[1:-1])

    def json(self) -> str:
        """What has come so far."""
        return f"[{', '.join(self._parts)}]"


def _describe(positions: Sequence[PositionLogprobs], tokenizer: Tokenizer) -> list[dict[int, dict[str, Any]]]:
    decode = functools.cache(lambda token_id: tokenizer.decode((token_id,), skip_special_tokens=False))
    return [
        {
            token.token_id: {
                "logprob": token.logprob if math.isfinite(token.logprob) else None,
                "rank": token.rank,
                "decoded_token": decode(token.token_id),
            }
            for token in position
        }
        for position in positions
    ]
