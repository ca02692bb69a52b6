"""Log-probabilities through the server: in the form of Triton's vLLM backend, and the model's own numbers."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from tests.e2e.test_contract_wire import ask_everywhere, ask_grpc, grpc_message, question

IDS = list(range(40, 140))
SAMPLED = {"max_tokens": 12, "ignore_eos": True, "seed": 7, "temperature": 1.4, "repetition_penalty": 1.2}
RETURNS = ("logprobs", "output_ids")


@pytest.fixture(scope="module")
def expected(server, sources):
    """The answer's ids and the model's log-probabilities [tokens, vocabulary] of every position after the first."""
    (row,) = ask_grpc(server, grpc_message("llama", question(SAMPLED, input_ids=IDS, returns=RETURNS)))
    ids = row.values["output_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(sources["llama"]).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS + ids])).logits[0, :-1]
    return ids, torch.log_softmax(logits.double(), -1)


def assert_position(position, token_id, distribution, count, tokenizer):
    """``position``: the JSON object of one token; ``distribution``: [vocabulary]."""
    assert next(iter(position)) == str(token_id)
    best = distribution.topk(count).indices.tolist()
    assert set(position) == {str(each) for each in (token_id, *best)}
    for key, found in position.items():
        assert set(found) == {"logprob", "rank", "decoded_token"}
        assert found["logprob"] == pytest.approx(distribution[int(key)].item(), abs=1e-3)
        assert found["decoded_token"] == tokenizer.decode([int(key)])
    assert [position[str(each)]["rank"] for each in best] == list(range(1, count + 1))


def test_each_token_has_its_logprob_and_the_likeliest_ones_over_every_protocol(server, sources, expected):
    ids, distributions = expected
    tokenizer = transformers.AutoTokenizer.from_pretrained(sources["llama"])
    asked = question(SAMPLED | {"logprobs": 3}, input_ids=IDS, stream=True, exclude_input_in_output=True, returns=RETURNS)
    for rows in ask_everywhere(server, "llama", asked).values():
        deltas = [json.loads(row["logprobs"][0]) for row in rows]
        assert [len(delta) for delta in deltas] == [len(row["output_ids"]) for row in rows]
        positions = [position for delta in deltas for position in delta]
        assert len(positions) == len(ids)
        for position, token_id, distribution in zip(positions, ids, distributions[len(IDS) - 1 :], strict=True):
            assert_position(position, token_id, distribution, 3, tokenizer)


def test_the_prompts_logprobs_come_with_the_first_response_alone(server, sources, expected):
    _, distributions = expected
    tokenizer = transformers.AutoTokenizer.from_pretrained(sources["llama"])
    asked = question(SAMPLED | {"prompt_logprobs": 1}, input_ids=IDS, stream=True)
    rows = [row.values for row in ask_grpc(server, grpc_message("llama", asked))]
    assert ["prompt_logprobs" in row for row in rows] == [True] + [False] * (len(rows) - 1)
    first, *others = json.loads(rows[0]["prompt_logprobs"][0])
    assert first is None and len(others) == len(IDS) - 1
    for position, token_id, distribution in zip(others, IDS[1:], distributions, strict=False):
        assert_position(position, token_id, distribution, 1, tokenizer)


def test_logprobs_are_null_when_only_the_output_is_asked_for_and_absent_when_only_the_number_is(server):
    (row,) = ask_grpc(server, grpc_message("llama", question(SAMPLED, input_ids=IDS, returns=("logprobs",))))
    assert row.values["logprobs"] == ["null"]
    (row,) = ask_grpc(server, grpc_message("llama", question(SAMPLED | {"logprobs": 2}, input_ids=IDS)))
    assert set(row.values) == {"text_output"}
