"""One request's answer put together from its responses, with the times a user feels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastserve.tools.client import GenerateClient, GenerateRequest, GenerateResponse, ServerUnreachable


@dataclasses.dataclass(slots=True)
class Answer:
    """Grows while responses arrive. Times are ``time.monotonic()`` seconds."""

    started: float
    text: str = ""
    others: list[str] = dataclasses.field(default_factory=list)
    """The texts of the request's other answers (the parameter n)."""
    finish_reason: str | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int = 0
    """As the server counts, else the number of responses."""
    first: float | None = None
    last: float | None = None

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first is None else self.first - self.started

    @property
    def duration_s(self) -> float:
        """From sending to the last response."""
        return 0.0 if self.last is None else self.last - self.started

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed: tokens after the first response, by the time they took; None when there was one response."""
        if self.first is None or self.last is None or self.last <= self.first:
            return None
        return max(0, self.num_output_tokens - self._first_tokens) / (self.last - self.first)

    _first_tokens: int = 0

    def add(self, response: GenerateResponse) -> None:
        """Take in the next response."""
        tokens = 1 if response.num_output_tokens is None else response.num_output_tokens
        if self.first is None:
            self.first, self._first_tokens = response.arrival, tokens
        self.last = response.arrival
        self.text += response.text
        self.others += [""] * (len(response.texts) - 1 - len(self.others))
        self.others = [text + new for text, new in zip(self.others, response.texts[1:], strict=True)]
        self.num_output_tokens += tokens
        self.finish_reason = response.finish_reason or self.finish_reason
        if response.num_input_tokens is not None:
            self.num_input_tokens = response.num_input_tokens

    def speed(self) -> str:
        """For people: time to the first token and decoding speed."""
        parts = [f"{self.num_output_tokens} tokens"]
        if (ttft := self.time_to_first_token_s) is not None:
            parts.append(f"first after {ttft * 1000:.0f} ms")
        if (rate := self.tokens_per_second) is not None:
            parts.append(f"then {rate:.1f} tokens/s")
        return ", ".join(parts)

    def as_json(self) -> Mapping[str, Any]:
        """For programs; times in milliseconds."""
        ttft = self.time_to_first_token_s
        return {
            "text": self.text,
            **({"other_texts": self.others} if self.others else {}),
            "finish_reason": self.finish_reason,
            "num_input_tokens": self.num_input_tokens,
            "num_output_tokens": self.num_output_tokens,
            "time_to_first_token_ms": None if ttft is None else round(ttft * 1000, 3),
            "duration_ms": round(self.duration_s * 1000, 3),
        }


def generate(client: GenerateClient, request: GenerateRequest, on_text: Callable[[str], None] | None = None) -> Answer:
    """Run one request to its end. ``on_text`` sees each delta. An exception (also Ctrl-C) cancels the request.

    Raises :class:`ServerUnreachable` when the answer stops without saying that it is complete (a server that died, a proxy
    that gave up); only a request that asks for ``finish_reason`` can tell.
    """
    answer = Answer(time.monotonic())
    with client.stream(request) as responses:
        for response in responses:
            answer.add(response)
            if on_text is not None:
                on_text(response.text)
    if "finish_reason" in request.returns and answer.finish_reason is None:
        raise ServerUnreachable(f"the answer ended early, after {answer.num_output_tokens} tokens; did the server stop?")
    return answer
