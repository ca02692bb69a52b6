"""Driving a server the way its users do: many requests at once, each to its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fastserve.tools.client import GenerateClient, GenerateRequest, RequestFailed, connect

RETURNS = ("finish_reason", "num_input_tokens", "num_output_tokens", "output_ids", "cumulative_logprob")


@dataclasses.dataclass
class Answer:
    """Everything one request got back, joined. Exactly one of ``finish_reason`` and ``error`` is set."""

    text: str = ""
    output_ids: tuple[int, ...] = ()
    responses: int = 0
    num_output_tokens: int = 0
    finish_reason: str | None = None
    error: RequestFailed | None = None


def ask(client: GenerateClient, request: GenerateRequest) -> Answer:
    """Send one request and read it to its end."""
    answer = Answer()
    request = dataclasses.replace(request, returns=RETURNS)
    try:
        with client.stream(request) as stream:
            for response in stream:
                assert answer.finish_reason is None, "a response came after the last one"
                answer.text += response.text
                answer.output_ids += response.output_ids
                answer.responses += 1
                answer.num_output_tokens += response.num_output_tokens or 0
                answer.finish_reason = response.finish_reason
    except RequestFailed as error:
        answer.error = error
    assert (answer.finish_reason is None) != (answer.error is None), f"no proper ending: {answer}"
    return answer


def ask_all(url: str, requests: Sequence[GenerateRequest], concurrency: int) -> list[Answer]:
    """All requests, ``concurrency`` at a time; answers in the order of the requests."""
    with connect(url) as client, ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda request: ask(client, request), requests))
