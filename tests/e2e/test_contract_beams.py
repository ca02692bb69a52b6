"""Beam search through a real Triton: the answers of transformers' ``generate``, best first, alone and beside others."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import transformers

from fastserve.tools import cli
from fastserve.tools.client import GenerateRequest
from tests.e2e.clients import ask_all
from tests.e2e.reference import generate
from tests.e2e.test_contract_wire import Refused, ask_grpc, ask_http, grpc_message, post, question
from tests.synthetic.tiny_models import VOCAB_SIZE

RETURNS = ("finish_reason", "output_ids", "num_output_tokens", "cumulative_logprob")


@pytest.fixture(scope="module")
def llama(sources):
    return transformers.AutoModelForCausalLM.from_pretrained(sources["llama"]).eval()


def prompts(count):
    rng = random.Random(3)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice((2, 9, 33, 70)))] for _ in range(count)]


def beams(prompt, num_beams=4, **parameters):
    asked = {"num_beams": num_beams, "n": num_beams, "max_tokens": 12} | parameters
    return question(asked, input_ids=prompt, returns=RETURNS, exclude_input_in_output=True)


def split_answers(row):
    ends = np.cumsum(row["num_output_tokens"])
    return [row["output_ids"][end - count : end] for end, count in zip(ends, row["num_output_tokens"], strict=True)]


@pytest.mark.parametrize("settings", [{}, {"length_penalty": 0.2}, {"length_penalty": -1.0, "early_stopping": True}])
def test_the_answers_are_those_of_generate_best_first(server, llama, settings):
    for prompt in prompts(4):
        (row,) = ask_http(server, "llama", beams(prompt, **settings))
        with torch.no_grad():
            ids = torch.tensor([prompt])
            output = llama.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                num_beams=4,
                num_return_sequences=4,
                do_sample=False,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
                **settings,
            )
        wanted = output.sequences[:, len(prompt) :].tolist()
        found = split_answers(row)
        assert [answer + [0] * (len(wanted[0]) - len(answer)) for answer in found] == wanted
        penalty = settings.get("length_penalty", 1.0)
        scores = [total / len(answer) ** penalty for total, answer in zip(row["cumulative_logprob"], found, strict=True)]
        assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-3)


def test_they_are_the_same_alone_and_in_a_crowd_and_leave_others_as_they_are(server, llama):
    searches, others = (
        [
            GenerateRequest("llama-small-pool", input_ids=prompt, parameters={"max_tokens": 12} | shape, stream=False)
            for prompt in prompts(6)
        ]
        for shape in ({"num_beams": 3}, {"temperature": 0})
    )
    alone = ask_all(server.grpc_url, searches, 1)
    crowd = ask_all(server.grpc_url, searches + others, 12)
    assert [answer.error for answer in crowd] == [None] * 12
    assert [answer.output_ids for answer in crowd[:6]] == [answer.output_ids for answer in alone]
    assert [answer.output_ids for answer in crowd[6:]] == [generate(llama, prompt, 12) for prompt in prompts(6)]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"num_beams": 2, "temperature": 1}, "temperature: got 1, allowed: 0 when num_beams is above 1"),
        ({"num_beams": 2, "n": 3}, "n: got 3, allowed: at most num_beams (2)"),
        ({"num_beams": 2, "json": True}, "json: got "),
    ],
)
def test_what_does_not_go_with_beams_is_an_invalid_argument(server, parameters, reason):
    inputs = question(parameters, text_input="hello")
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama", inputs))
    assert caught.value.message.startswith(reason)
    assert post(server, "llama", inputs).json()["error"].startswith(f"INVALID_ARG: {reason}")


def test_beams_that_cannot_fit_the_pool_together_are_refused_with_both_numbers(server):
    inputs = question({"num_beams": 32, "max_tokens": 100}, input_ids=[5] * 20)
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama-tiny-pool", inputs))
    assert "'120 tokens (225 KV blocks for 32 beams)'" in caught.value.message and "(24 blocks)" in caught.value.message


def test_infer_asks_for_beams_without_streaming(server, capsys):
    asked = ["infer", "llama", "hello", "--url", server.grpc_url, "--max-tokens", "8", "--parameter", "num_beams=3", "--json"]
    assert cli.main(asked) == 0
    (row,) = ask_http(
        server, "llama", question({"num_beams": 3, "max_tokens": 8}, text_input="hello", exclude_input_in_output=True)
    )
    assert json.loads(capsys.readouterr().out)["text"] == row["text_output"][0]
