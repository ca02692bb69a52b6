"""Guided decoding on a real export with a real tokenizer: at temperature 1 a random model writes what it was told to, always."""

from __future__ import annotations

import json
import re
import time

import jsonschema
import pytest

from fastserve.config import EngineConfig
from fastserve.core.request import FinishReason
from fastserve.engine.loader import load_engine, load_text_generation
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.manifest import ModelManifest
from fastserve.tasks.text_generation import GenerationInput, GenerationStream
from tests.doubles import collect
from tests.synthetic.tiny_models import llama_config, save_model

SEEDS = range(24)
NAME = {"type": "string", "maxLength": 6, "pattern": "^[a-z ]*$"}
SCHEMAS = {
    "record": {
        "type": "object",
        "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "ok": {"type": "boolean"}},
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"enum": [1, "two", None]}, "c": {"const": {"x": [1]}}},
        "additionalProperties": False,
    },
    "list": {"type": "array", "items": {"anyOf": [{"type": "integer"}, NAME]}, "minItems": 1, "maxItems": 4},
    "references": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "number"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
    },
    "text": {"type": "string", "maxLength": 8},
    "any object": {"type": "object"},
}
PATTERNS = [r"\d{4}-\d\d-\d\d", r"(the|in|er){2,5}!", r"[a-zé☃]{1,9}", r"\w+@\w{1,5}\.(com|org)", r"^(yes|no)( maybe)?$"]
CHOICES = ["yes", "yesterday", "no", " maybe", "the end", '"quoted"', "é☃😀", "line\nbreak"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An engine and the task that feeds it, of a random Llama."""
    root = tmp_path_factory.mktemp("guided")
    source = save_model(llama_config(max_position_embeddings=512), root / "source")
    export_model(str(source), ExportOptions(output=root / "repository", name="tiny"))
    directory = root / "repository" / "tiny" / "1"
    manifest = ModelManifest.load(directory)
    config = EngineConfig(kv_cache_bytes=2**24, max_num_seqs=64)
    return load_engine(directory, manifest, config, time.monotonic), load_text_generation(directory, manifest, config)


def generate(served, requests):
    """The text and the ending of each, computed together; a request is its parameters."""
    engine, task = served
    prepared = [
        task.prepare(GenerationInput(text="the end in", parameters={"max_tokens": 120} | parameters), number, 0.0)
        for number, parameters in enumerate(requests)
    ]
    events = [event for one in prepared for event in engine.submit(one.request)]
    while engine.has_work:
        events += engine.step()
    outcomes = collect(events)
    answers = []
    for one in prepared:
        assert [event for event in events if not hasattr(event, "token_id")] == []
        stream = GenerationStream(one, task.tokenizer)
        own = [event for event in events if event.request_id == one.request.request_id]
        answers.append(("".join(stream.push(event).text for event in own), outcomes[one.request.request_id].endings))
    return answers


def seeded(**parameters):
    return [{"temperature": 1.0, "seed": seed, **parameters} for seed in SEEDS]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_that_ends_is_valid_json_of_its_schema(served, name):
    answers = generate(served, seeded(json=SCHEMAS[name], max_tokens=250))
    ended = [text for text, endings in answers if endings == [FinishReason.STOP]]
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
    assert len(ended) >= len(SEEDS) / (2 if name in ("any object", "references") else 1), "most go on for ever"
    assert len(set(ended)) > 3


def test_a_schema_may_come_as_text_and_true_is_any_object(served):
    same = [seeded(json=form)[:5] for form in (SCHEMAS["record"], json.dumps(SCHEMAS["record"]))]
    same += [seeded(json=form, max_tokens=40)[:5] for form in ({"type": "object"}, True)]
    first, second, third, fourth = (generate(served, requests) for requests in same)
    assert (first, third) == (second, fourth)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_answer_matches_its_expression_from_end_to_end(served, pattern):
    answers = generate(served, seeded(regex=pattern))
    assert all(re.fullmatch(pattern, text, re.ASCII) for text, endings in answers if endings == [FinishReason.STOP])
    assert sum(endings == [FinishReason.STOP] for _, endings in answers) > len(SEEDS) / 2


def test_every_answer_is_one_of_the_choices(served):
    answers = generate(served, seeded(choice=CHOICES))
    assert {text for text, _ in answers} <= set(CHOICES) and len({text for text, _ in answers}) >= 3
    assert all(endings == [FinishReason.STOP] for _, endings in answers)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_guided_request_is_the_same_alone_and_among_others(served, temperature):
    requests = [
        {"temperature": temperature, "seed": 5, **guide}
        for guide in ({"json": SCHEMAS["record"]}, {"json": SCHEMAS["list"]}, {"regex": PATTERNS[3]}, {"choice": CHOICES}, {})
    ]
    together = generate(served, [request for request in requests for _ in range(4)])
    alone = [generate(served, [request])[0] for request in requests]
    assert together == [answer for answer in alone for _ in range(4)]


def test_it_composes_with_what_else_shapes_an_answer(served):
    shaping = {
        "temperature": 1.3,
        "top_k": 40,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.4,
        "bad_words": ["ab"],
    }
    for text, endings in generate(served, seeded(json=SCHEMAS["record"], min_tokens=10, max_tokens=400, **shaping)):
        assert endings == [FinishReason.STOP] and "ab" not in json.loads(text)["name"]
