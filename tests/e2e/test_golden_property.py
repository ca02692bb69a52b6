"""Through a real Triton, a request's tokens are what transformers would generate, whatever else is being served."""

from __future__ import annotations

import dataclasses
import random

import pytest
import transformers

from fastserve.tools.client import GenerateRequest
from tests.e2e.clients import ask_all
from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.reference import assert_equal_but_for_ties, generate
from tests.e2e.served_models import SERVED

CONCURRENCY = 16
OTHER_POLICIES = ("llama-fcfs", "llama-mlfq", "llama-vtc", "llama-priority")
SWAPPING = ("llama-swap", "llama-swap-file")
FP32_MODELS = ("llama", "gpt2", "qwen2", "qwen3", "llama-small-pool", *SWAPPING)


def random_prompts(seed, vocab_size, count=24, longest=200):
    rng = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, longest] + [rng.randint(3, longest) for _ in range(count - 6)]
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def greedy(model, prompt, max_tokens=40):
    return GenerateRequest(model, input_ids=prompt, parameters={"temperature": 0, "max_tokens": max_tokens})


def salted(requests, salt):
    """Requests that find nothing of what others computed: all of their prompts is computed in chunks."""
    return [dataclasses.replace(request, parameters=request.parameters | {"cache_salt": salt}) for request in requests]


def sampled(model, prompt, seed):
    parameters = {"temperature": 1.2, "top_p": 0.95, "top_k": 50, "seed": seed, "max_tokens": 40, "repetition_penalty": 1.1}
    return GenerateRequest(model, input_ids=prompt, parameters=parameters)


@pytest.fixture(scope="module")
def references(sources):
    """Source models by name, loaded when first used."""
    loaded = {}

    def get(name):
        source = SERVED[name].source
        if source not in loaded:
            loaded[source] = transformers.AutoModelForCausalLM.from_pretrained(sources[source]).eval()
        return loaded[source]

    return get


@pytest.mark.parametrize("name", FP32_MODELS)
def test_greedy_tokens_equal_transformers_in_a_crowd_with_chunked_prefill(server, references, name):
    model = references(name)
    prompts = random_prompts(name, model.config.vocab_size)
    expected = [generate(model, prompt, 40) for prompt in prompts]
    answers = ask_all(server.grpc_url, [greedy(name, prompt) for prompt in prompts], CONCURRENCY)
    assert [answer.error for answer in answers] == [None] * len(prompts)
    assert_equal_but_for_ties(model, prompts, expected, [answer.output_ids for answer in answers])


@pytest.mark.parametrize("name", [*FP32_MODELS, "llama-fp16-cache", "llama-int8-cache"])
@pytest.mark.parametrize("make", [lambda m, p, i: greedy(m, p), sampled], ids=["greedy", "sampled"])
def test_tokens_are_the_same_alone_and_in_a_crowd(server, references, name, make):
    prompts = random_prompts(name, references(name).config.vocab_size)
    requests = [make(name, prompt, index) for index, prompt in enumerate(prompts)]
    alone = ask_all(server.grpc_url, salted(requests, f"alone {make.__name__}"), 1)
    crowd = ask_all(server.grpc_url, salted(requests, f"crowd {make.__name__}"), CONCURRENCY)
    assert [answer.output_ids for answer in alone] == [answer.output_ids for answer in crowd]
    assert len({answer.output_ids for answer in alone}) > len(alone) // 2
    assert all(answer.output_ids for answer in alone)


@pytest.mark.parametrize("name", OTHER_POLICIES)
def test_tokens_are_the_same_under_every_policy(server, references, name):
    prompts = random_prompts("policies", references(name).config.vocab_size)
    parameters = {"priority": -3} if name == "llama-priority" else {"tenant": "ada"}
    requests = [sampled(name, prompt, index) for index, prompt in enumerate(prompts)]
    for request in requests[::2]:
        request.parameters.update(parameters)
    answers = ask_all(server.grpc_url, requests, CONCURRENCY)
    expected = ask_all(server.grpc_url, [sampled("llama", prompt, index) for index, prompt in enumerate(prompts)], 1)
    assert [answer.error for answer in answers] == [None] * len(prompts)
    assert [answer.output_ids for answer in answers] == [answer.output_ids for answer in expected]


@pytest.mark.parametrize("name", FP32_MODELS)
def test_turns_of_conversations_taken_from_the_prefix_cache_equal_transformers(server, references, name):
    """Every turn brings back what was said: blocks that were filled by prefills in chunks and by decodes, in a crowd."""
    model = references(name)
    rng = random.Random(name)
    said = [prompt[:40] for prompt in random_prompts(f"turns {name}", model.config.vocab_size, count=8)]
    before = read_metric(server, "vllm:prefix_cache_hits_total", name)
    for _ in range(3):
        expected = [generate(model, prompt, 12) for prompt in said]
        answers = ask_all(server.grpc_url, [greedy(name, prompt, 12) for prompt in said], len(said))
        assert_equal_but_for_ties(model, said, expected, [answer.output_ids for answer in answers])
        said = [
            [*prompt, *answer.output_ids, *(rng.randrange(3, model.config.vocab_size) for _ in range(rng.randint(1, 20)))]
            for prompt, answer in zip(said, answers, strict=True)
        ]
    wait_until(lambda: read_metric(server, "vllm:prefix_cache_hits_total", name) - before >= 8 * 16)


@pytest.mark.parametrize(
    ("name", "family"),
    [("llama-small-pool", "vllm:num_preemptions_total"), *((name, "fastserve:swapped_in_total") for name in SWAPPING)],
)
def test_a_small_pool_really_preempts(server, references, name, family):
    before = read_metric(server, family, name)
    prompts = random_prompts("preempt", references("llama").config.vocab_size)

    def some_were_preempted() -> bool:
        answers = ask_all(server.grpc_url, [greedy(name, prompt) for prompt in prompts], CONCURRENCY)
        assert all(answer.finish_reason for answer in answers)
        return read_metric(server, family, name) > before

    wait_until(some_were_preempted)
