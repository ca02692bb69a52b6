"""The code of every kind of error, at the beginning of its message: Triton itself shows it to few clients (HTTP answers 400 to
whatever a model refuses, and a gRPC stream carries only the message)."""

from __future__ import annotations

import json

import pytest

from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.test_contract_wire import (
    Refused,
    ask_grpc,
    grpc_message,
    open_channel,
    post,
    question,
    rows_of,
    split_code,
    start_call,
)

MODEL = "llama-long"
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 10_000}


def over_grpc(server, model, inputs):
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message(model, inputs))
    return caught.value.code, caught.value.message


def over_http(server, model, inputs):
    answer = post(server, model, inputs)
    assert answer.status_code == 400
    return split_code(answer.json()["error"])


def over_http_stream(server, model, inputs):
    lines = post(server, model, inputs, "generate_stream").text.split("\n\n")
    error = next(line for line in reversed(lines) if "error" in line)
    return split_code(json.loads(error.removeprefix("data:"))["error"])


@pytest.fixture(params=[over_grpc, over_http, over_http_stream])
def refusal(request, server):
    """Code and message of a request that is refused."""
    return lambda inputs, model=MODEL: request.param(server, model, inputs)


def test_a_request_that_is_wrong_is_an_invalid_argument(refusal):
    for inputs in (
        question({"temperature": -1}, text_input="hello"),
        question({"max_tokns": 5}, text_input="hello"),
        question(text_input=""),
        question(input_ids=[5] * 20_000),
        question({"stop_token_ids": list(range(269)), "min_tokens": 4}, text_input="hello"),
    ):
        assert refusal(inputs)[0] == "INVALID_ARG"


def test_what_this_model_cannot_do_is_unsupported(refusal):
    assert refusal(question({"priority": 1}, text_input="hello"))[0] == "UNSUPPORTED"


def test_a_deadline_that_passes_is_unavailable(refusal):
    code, message = refusal(question(LONG | {"deadline_ms": 50}, text_input="hello"))
    assert (code, message) == ("UNAVAILABLE", "the deadline (deadline_ms) passed before the request finished")


def test_a_full_queue_is_unavailable(server, refusal):
    model = "llama-small-queue"
    with open_channel(server) as channel:
        message = grpc_message(model, question(LONG, input_ids=[5] * 6000, stream=True))
        calls = [start_call(channel, message)]
        next(rows_of(calls[0]))  # only now is it sure which of the three runs
        calls += [start_call(channel, message) for _ in range(2)]
        wait_until(lambda: read_metric(server, "vllm:num_requests_waiting", model) == 2)
        code, message = refusal(question(text_input="hello"), model)
        for call in calls:
            call.cancel()
    wait_until(lambda: read_metric(server, "vllm:num_requests_waiting", model) == 0)
    assert (code, message) == ("UNAVAILABLE", "the queue is full: 3 requests, max_queue_size is 3; try again later")
