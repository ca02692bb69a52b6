"""A real language model through a real Triton: fp32 greedy answers equal transformers' ``generate``, token for token."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil

import jsonschema
import pytest
import transformers

from fastserve.tools.client import GenerateRequest, connect
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.clients import ask, ask_all
from tests.e2e.metrics_page import read_metric, settled
from tests.e2e.reference import assert_equal_but_for_ties, generate
from tests.e2e.smollm2 import GGUF_FILE, NAME, PACKAGE, exported_repository

LENGTHS = (5, 6, 8, 11, 15, 16, 17, 24, 32, 33, 48, 64, 90, 127, 180, 256, 300, 420, 560, 700)
MAX_TOKENS = 24
CONCURRENCY = 16
BLOCK_BYTES = 30 * 2 * 3 * 64 * 16 * 4
"""KV bytes of a block: layers, key and value, heads, head size, tokens, fp32."""
SUBJECTS = ("The river", "An old clock", "My neighbour's cat", "The committee", "A small boat", "The last train", "Her letter")
VERBS = ("crossed", "remembered", "painted", "ignored", "followed", "repaired", "described")
OBJECTS = (
    "the quiet valley",
    "seven wooden chairs",
    "a map of the coast",
    "the winter of 1963",
    "every second house",
    "two bridges",
)


@pytest.fixture(scope="module")
def smollm2():
    """The model in transformers, from the same file that is exported."""
    return transformers.AutoModelForCausalLM.from_pretrained(PACKAGE, gguf_file=GGUF_FILE).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(PACKAGE, gguf_file=GGUF_FILE)


@pytest.fixture(scope="module")
def smollm2_server():
    with TritonLauncher(exported_repository(), LaunchOptions(ready_timeout_s=300.0)) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def swapping_server(tmp_path_factory):
    """The same model with a KV pool for a quarter of the crowd, a host tier for half of the rest, and a file."""
    exported, folder = exported_repository() / NAME, tmp_path_factory.mktemp("swapping") / NAME
    shutil.copytree(exported, folder, copy_function=os.link)
    config = exported / "config.pbtxt"
    (folder / config.name).unlink()
    sizes = {"kv_cache_bytes": 54, "swap_space_bytes": 60, "swap_file_bytes": 200}
    settings = {name: str(blocks * BLOCK_BYTES) for name, blocks in sizes.items()} | {"policy": "skip_join_mlfq"}
    lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in settings.items()]
    (folder / config.name).write_text("\n".join([config.read_text(), *lines, ""]))
    with TritonLauncher(folder.parent, LaunchOptions(ready_timeout_s=180.0)) as launcher:
        yield launcher


def make_text(rng, tokenizer, num_tokens):
    """English that is exactly ``num_tokens`` tokens long."""
    text = ""
    while len(tokenizer(text)["input_ids"]) <= num_tokens + 8:
        text += f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}. "
    text = tokenizer.decode(tokenizer(text)["input_ids"][:num_tokens])
    assert len(tokenizer(text)["input_ids"]) == num_tokens
    return text


def test_twenty_prompts_of_5_to_700_tokens_in_a_crowd_equal_transformers(smollm2_server, smollm2, tokenizer):
    rng = random.Random(7)
    texts = [make_text(rng, tokenizer, length) for length in LENGTHS]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    order = rng.sample(range(len(texts)), len(texts))
    parameters = {"temperature": 0, "max_tokens": MAX_TOKENS}
    requests = [GenerateRequest(NAME, text=texts[index], parameters=parameters) for index in order]
    answers = dict(zip(order, ask_all(smollm2_server.grpc_url, requests, CONCURRENCY), strict=True))
    assert [answer.error for answer in answers.values()] == [None] * len(texts)
    expected = [generate(smollm2, prompt, MAX_TOKENS) for prompt in prompts]
    actual = [answers[index].output_ids for index in range(len(texts))]
    assert_equal_but_for_ties(smollm2, prompts, expected, actual)


def test_they_do_so_too_with_a_quarter_of_the_pool_swapped_through_memory_and_file(swapping_server, smollm2_server, tokenizer):
    rng = random.Random(8)
    texts = [make_text(rng, tokenizer, length) for length in LENGTHS]
    parameters = {"temperature": 0, "max_tokens": MAX_TOKENS}
    requests = [GenerateRequest(NAME, text=text, parameters=parameters) for text in texts]
    roomy, small = (ask_all(server.grpc_url, requests, len(texts)) for server in (smollm2_server, swapping_server))
    assert [answer.error for answer in roomy + small] == [None] * 2 * len(texts)
    assert [answer.output_ids for answer in roomy] == [answer.output_ids for answer in small]
    assert settled(lambda: read_metric(swapping_server, "fastserve:swapped_in_total", NAME)) > 0
    assert read_metric(smollm2_server, "fastserve:swapped_in_total", NAME) == 0


def test_a_chat_is_answered_with_the_models_own_template(smollm2_server, smollm2, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with connect(smollm2_server.http_url) as client:
        answer = ask(client, GenerateRequest(NAME, messages=messages, parameters={"temperature": 0, "max_tokens": 32}))
    assert answer.output_ids == generate(smollm2, prompt, 32)
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")


def test_a_chats_next_turns_take_the_ones_before_from_the_prefix_cache(smollm2_server, smollm2, tokenizer):
    messages, hits = [], []
    with connect(smollm2_server.http_url) as client:
        for words in ("Name three rivers of Europe.", "Which of them is the longest?", "And where does it begin?"):
            messages.append({"role": "user", "content": words})
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            before = read_metric(smollm2_server, "vllm:prefix_cache_hits_total", NAME)
            answer = ask(client, GenerateRequest(NAME, messages=messages, parameters={"temperature": 0, "max_tokens": 32}))
            assert_equal_but_for_ties(smollm2, [prompt], [generate(smollm2, prompt, 32)], [answer.output_ids])
            hits.append(settled(lambda: read_metric(smollm2_server, "vllm:prefix_cache_hits_total", NAME)) - before)
            messages.append({"role": "assistant", "content": answer.text})
    assert hits[2] > hits[1] > 32


def test_sampled_answers_are_the_same_alone_and_in_a_crowd(smollm2_server, tokenizer):
    rng = random.Random(11)
    requests = [
        GenerateRequest(NAME, text=make_text(rng, tokenizer, length), parameters={"seed": length, "top_p": 0.9, "max_tokens": 12})
        for length in (5, 9, 20, 41, 77, 150)
    ]
    alone = ask_all(smollm2_server.grpc_url, requests, 1)
    requests = [dataclasses.replace(item, parameters=item.parameters | {"cache_salt": "crowd"}) for item in requests]
    crowd = ask_all(smollm2_server.grpc_url, requests, len(requests))
    assert [answer.output_ids for answer in alone] == [answer.output_ids for answer in crowd]


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def guided(question, temperature, **guide):
    messages = [{"role": "user", "content": question}]
    return GenerateRequest(NAME, messages=messages, parameters={"temperature": temperature, "seed": 5, "max_tokens": 80} | guide)


def test_guided_answers_follow_their_guide_and_are_the_same_alone_and_in_a_crowd(smollm2_server):
    requests = [
        guided(question, temperature, **guide)
        for temperature in (0, 1)
        for question, guide in (
            ("Ada Lovelace is 36 years old. Who is it? Answer in JSON.", {"json": PERSON}),
            ("Is Paris in France?", {"choice": ["yes", "no"]}),
            ("When did the war end?", {"regex": r"[A-Z][a-z]{2,8} \d{1,2}, \d{4}"}),
        )
    ]
    alone = ask_all(smollm2_server.grpc_url, requests, 1)
    crowd = ask_all(smollm2_server.grpc_url, requests * 2, 2 * len(requests))
    assert [answer.output_ids for answer in crowd] == [answer.output_ids for answer in alone] * 2
    for person, choice, date in (alone[:3], alone[3:]):
        jsonschema.validate(json.loads(person.text), PERSON)
        assert choice.text in ("yes", "no") and re.fullmatch(r"[A-Z][a-z]{2,8} \d{1,2}, \d{4}", date.text)
    assert json.loads(alone[0].text)["name"] == "Ada Lovelace"
    assert {answer.finish_reason for answer in alone} == {"stop"}


@pytest.mark.parametrize("length_penalty", [1.0, 0.0])
def test_beam_search_equals_transformers_while_others_are_served(smollm2_server, smollm2, tokenizer, length_penalty):
    rng = random.Random(13)
    texts = [make_text(rng, tokenizer, length) for length in (6, 17, 40)]
    parameters = {"num_beams": 4, "length_penalty": length_penalty, "max_tokens": 16}
    requests = [GenerateRequest(NAME, text=text, parameters=parameters, stream=False) for text in texts]
    requests += [GenerateRequest(NAME, text=text, parameters={"temperature": 0, "max_tokens": 16}) for text in texts]
    answers = ask_all(smollm2_server.grpc_url, requests, len(requests))
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    expected = [generate(smollm2, prompt, 16, num_beams=4, length_penalty=length_penalty) for prompt in prompts]
    expected += [generate(smollm2, prompt, 16) for prompt in prompts]
    assert [answer.output_ids for answer in answers] == expected
