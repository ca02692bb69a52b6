"""A server of encoder models that lives in the test: keeps the contract of ``fastserve.tools.encoder_client.EncoderClient``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastserve.errors import FastServeError
from fastserve.tools.encoder_client import EncoderRequest, Outputs

Answer = Callable[[EncoderRequest], Mapping[str, list[Any]]]


class FakeEncoderClient:
    """Answers each request with what ``answer`` gives or raises. Also its own predictor of one request at a time."""

    concurrency = 1

    def __init__(self, answer: Answer, task: str | None = None, refusal: FastServeError | None = None) -> None:
        """``task``: in the model's configuration; ``refusal``: raised when the configuration is asked for."""
        self._answer = answer
        self._task = task
        self._refusal = refusal
        self.requests: list[EncoderRequest] = []
        self.models: set[str] = set()
        self.url = ""

    def connect(self, url: str) -> FakeEncoderClient:
        self.url = url
        return self

    def infer(self, model: str, request: EncoderRequest) -> Outputs:
        self.models.add(model)
        return self.answer(request)

    def answer(self, request: EncoderRequest) -> Outputs:
        self.requests.append(request)
        return self._answer(request)

    def model_parameters(self, model: str) -> Mapping[str, str]:
        if self._refusal is not None:
            raise self._refusal
        return {} if self._task is None else {"task": self._task}

    def close(self) -> None: ...

    def __enter__(self) -> FakeEncoderClient:
        return self

    def __exit__(self, *_: object) -> None: ...


def labelled_tokens(text: str, tags: Mapping[str, str], pieces: Mapping[str, tuple[str, ...]] | None = None) -> Outputs:
    """What a token classifier says of ``text`` with aggregation_strategy none: each word (or each of its ``pieces``) with the
    tag ``tags`` gives the word, "O" for others; the pieces after the first have the tag "WRONG". A word without pieces has no
    token."""
    outputs: dict[str, list[Any]] = {"label": [], "score": [], "start": [], "end": []}
    position = 0
    for word in text.split(" "):
        start = position
        for number, piece in enumerate((pieces or {}).get(word, (word,))):
            outputs["label"].append(tags.get(word, "O") if number == 0 else "WRONG")
            outputs["score"].append(0.9)
            outputs["start"].append(start)
            outputs["end"].append(start + len(piece))
            start += len(piece)
        position += len(word) + 1
    return outputs


def ranked(scores: Mapping[str, float]) -> Outputs:
    """What a text classifier says: ``scores`` in the order of the model's labels."""
    best = sorted(scores, key=lambda label: -scores[label])
    result = [{"label": label, "score": scores[label]} for label in best]
    return {
        "label": best[:1],
        "score": [scores[best[0]]],
        "scores": list(scores.values()),
        "result": [json.dumps(result)],
    }
