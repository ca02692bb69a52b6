"""Guided answers through a real Triton: JSON of a schema, a whole match, one of the choices; by tensor and request parameter."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from fastserve.tools import cli
from tests.e2e.test_contract_wire import Refused, ask_grpc, ask_http, grpc_message, post, question

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PATTERN = r"[a-c]{2,4}-\d\d"
CHOICES = ["yes", "no", "maybe not"]
GUIDES = {
    "json": (json.dumps(SCHEMA), lambda text: jsonschema.validate(json.loads(text), SCHEMA) is None),
    "regex": (PATTERN, lambda text: re.fullmatch(PATTERN, text)),
    "choice": (json.dumps(CHOICES), lambda text: text in CHOICES),
}
RETURNS = ("finish_reason", "output_ids")


def guided(guide, seed=0, *, stream=False, **parameters):
    asked = {"temperature": 1, "seed": seed, "max_tokens": 200} | guide | parameters
    return question(
        asked, text_input="hello", returns=RETURNS, stream=stream, **({} if stream else {"exclude_input_in_output": True})
    )


@pytest.mark.parametrize("kind", GUIDES)
def test_every_answer_follows_its_guide_and_ends_with_stop(server, kind):
    value, fits = GUIDES[kind]
    texts = set()
    for seed in range(10):
        (row,) = ask_http(server, "llama", guided({kind: value}, seed) | {"text_input": f"hello {seed}"})
        assert row["finish_reason"] == ["stop"] and fits(row["text_output"][0]), row
        texts.add(row["text_output"][0])
    assert len(texts) > 1


@pytest.mark.parametrize("kind", GUIDES)
def test_a_guide_may_come_as_a_request_parameter_of_generate(server, kind):
    value, _ = GUIDES[kind]
    parameters = {"temperature": 1.0, "seed": 3, "max_tokens": 200}
    asked = question(text_input="hello", returns=RETURNS, exclude_input_in_output=True)
    expected = ask_http(server, "llama", guided({kind: value}, 3))
    assert ask_http(server, "llama", asked | parameters | {kind: value}) == expected
    (row,) = ask_grpc(server, grpc_message("llama", asked, **parameters, **{kind: value}))
    assert [row.values] == expected


def test_a_schema_and_choices_may_be_json_or_its_text(server):
    for kind, value in (("json", SCHEMA), ("choice", CHOICES)):
        as_json, as_text = (ask_http(server, "llama", guided({kind: form}, 5)) for form in (value, json.dumps(value)))
        assert as_json == as_text


def test_a_streamed_guided_answer_is_the_whole_ones_text(server):
    whole = ask_http(server, "llama", guided({"json": SCHEMA}, 4))
    rows = ask_grpc(server, grpc_message("llama", guided({"json": SCHEMA}, 4, stream=True)))
    assert "".join(row.values["text_output"][0] for row in rows) == whole[0]["text_output"][0]
    assert rows[-1].values["finish_reason"] == ["stop"]


def test_each_of_several_answers_follows_the_guide_on_its_own(server):
    (row,) = ask_http(server, "llama", guided({"json": SCHEMA}, 1, n=5))
    assert len(row["text_output"]) == 5 and len(set(row["text_output"])) > 1
    for text in row["text_output"]:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_an_answer_cut_at_max_tokens_is_the_beginning_of_a_guided_one(server):
    (whole,) = ask_http(server, "llama", guided({"json": SCHEMA}, 2))
    (cut,) = ask_http(server, "llama", guided({"json": SCHEMA}, 2, max_tokens=5))
    assert cut["finish_reason"] == ["length"] and whole["text_output"][0].startswith(cut["text_output"][0])


@pytest.mark.parametrize(
    ("guide", "reason"),
    [
        ({"json": {"type": "strin"}}, "Invalid type: strin"),
        ({"json": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"regex": "(a"}, "unclosed group"),
        ({"json": True, "regex": "a"}, "one of json, regex, choice"),
        ({"json": True, "ignore_eos": True}, "false with json"),
    ],
)
def test_a_guide_that_cannot_be_followed_is_an_invalid_argument_naming_it(server, guide, reason):
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama", guided(guide)))
    key = list(guide)[-1]
    assert caught.value.message.startswith(f"{key}: got ") and reason in caught.value.message
    answer = post(server, "llama", guided(guide))
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"INVALID_ARG: {key}: ")


def test_infer_passes_guides_like_every_other_parameter(server, capsys):
    url = ["--url", server.grpc_url, "--json", "--max-tokens", "200", "--temperature", "0"]
    for kind, (value, fits) in GUIDES.items():
        assert cli.main(["infer", "llama", "hello", *url, "--parameter", f"{kind}={value}"]) == 0
        assert fits(json.loads(capsys.readouterr().out)["text"])
