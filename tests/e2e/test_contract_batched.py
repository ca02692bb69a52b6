"""Generation behind Triton's dynamic batcher: tensors have a leading 1, and everything else is as without it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.test_contract_wire import RETURNS, Refused, ask_grpc, ask_http, bytes_tensor, grpc_message, question

SAMPLED = {"temperature": 1.0, "seed": 7, "max_tokens": 12, "ignore_eos": True, "n": 2, "logprobs": 1}


def test_the_model_is_decoupled_and_has_a_batch_dimension_and_the_batcher(server):
    config = httpx.get(f"{server.http_url}/v2/models/llama-batched/config", trust_env=False).json()
    assert config["model_transaction_policy"] == {"decoupled": True} and config["max_batch_size"] == 8
    assert "dynamic_batching" in config


@pytest.mark.parametrize("inputs", [{"text_input": "hello"}, {"input_ids": [40, 41, 42]}], ids=["text", "ids"])
def test_deltas_and_whole_answers_are_those_of_the_unbatched_model_with_a_leading_one(server, inputs):
    plain, batched = {}, {}
    for stream in (False, True):
        asked = question(SAMPLED, stream=stream, exclude_input_in_output=True, returns=(*RETURNS, "timing"), **inputs)
        plain[stream] = ask_grpc(server, grpc_message("llama", asked))
        batched[stream] = ask_grpc(server, grpc_message("llama-batched", asked, batched=True))
    for row in batched[True] + batched[False]:
        assert {len(shape) for shape in row.shapes.values()} == {2} and {shape[0] for shape in row.shapes.values()} == {1}
    (expected,), (found,) = plain[False], batched[False]
    assert found.shapes == {name: (1, *shape) for name, shape in expected.shapes.items()} and found.types == expected.types
    assert [row.final for row in batched[True]] == [False] * (len(batched[True]) - 1) + [True]
    del expected.values["timing"], found.values["timing"]
    assert found.values == expected.values
    for index in range(2):
        text = "".join(row.values["text_output"][index] for row in batched[True])
        assert text == expected.values["text_output"][index]


def test_http_gives_the_same_answer_with_and_without_the_batcher(server):
    asked = question(SAMPLED, text_input="hello", returns=RETURNS)
    assert ask_http(server, "llama-batched", asked) == ask_http(server, "llama", asked)


def test_requests_that_come_together_get_each_its_own_answer(server):
    texts = [f"number {index}" for index in range(16)]
    asked = [question(SAMPLED, text_input=text, returns=RETURNS) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda inputs: ask_http(server, "llama-batched", inputs), asked))
    assert found == [ask_http(server, "llama", inputs) for inputs in asked]


def test_several_rows_in_one_request_are_refused(server):
    tensors = {"text_input": ("BYTES", [2, 1], bytes_tensor(b"a", b"b"))}
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama-batched", {}, tensors=tensors))
    assert caught.value.message == "text_input: got '2 values', allowed: one value"
