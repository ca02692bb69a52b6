"""Every encoder task through a real Triton: what is declared, and the answers of transformers over every protocol."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
import transformers

from fastserve.config import ENCODER_TASKS
from fastserve.export import source_predictions
from fastserve.triton.encoder_io import DEFAULT_MAX_BATCH_SIZE, encoder_inputs, encoder_outputs
from tests.e2e.encoder_wire import generate, infer_grpc, infer_http
from tests.e2e.served_encoders import SOURCES

SHORT = "Ada Lovelace lives in London"
LONG = "the film was not very good but the book by Marie Curie is good " * 5
QUESTION = {"question": "who lives in london ?", "context": f"Alan works in Berlin . {SHORT} . John visited the river ."}
SCORE_TOLERANCE = 1e-4

QUESTIONS = {
    "classify": [{"text_input": SHORT}, {"text_input": "who was it ?", "text_pair": "the company in Ghana"}],
    "tag": [{"text_input": SHORT}, {"text_input": "köttbullar from Åland ! 日本"}],
    "relate": [
        {"text_input": SHORT, "head": [0, 12], "tail": [22, 28]},
        {"text_input": "[E1]Ada[/E1] works for [E2]Google[/E2]"},
    ],
    "answer": [QUESTION],
    "embed": [{"text_input": SHORT}, {"text_input": LONG[:300]}],
    "fill": [{"text_input": "ada lives in [MASK] ."}],
    "rank": [{"text_input": "who is ada ?", "text_pair": SHORT}],
    "zero-shot": [{"text_input": SHORT, "candidate_labels": ["city", "food", "film"]}],
}
"""By model: what is asked, one row each."""
ASKED = [
    pytest.param(model, inputs, id=f"{model}-{index}") for model, many in QUESTIONS.items() for index, inputs in enumerate(many)
]
PROTOCOLS = ["grpc", "http", "generate"]


@pytest.fixture(scope="module")
def source_models(encoder_sources):
    """What transformers answers: a function from a model's name and one row's inputs to outputs by name."""
    loaded = {}

    def answer(name, inputs):
        task, folder = SOURCES[name].task, str(encoder_sources[name])
        if task == "fill-mask":
            found = transformers.pipeline("fill-mask", model=folder)(inputs["text_input"])
            return {"token": [each["token"] for each in found], "score": [each["score"] for each in found]}
        if task == "reranking":
            pipeline = transformers.pipeline("text-classification", model=folder)
            found = pipeline({"text": inputs["text_input"], "text_pair": inputs["text_pair"]}, function_to_apply="sigmoid")
            return {"score": [found["score"]]}
        if name not in loaded:
            loaded[name] = source_predictions.load(folder, task)
        texts = {key: value for key, value in inputs.items() if isinstance(value, str)}
        spans = {key: tuple(inputs[key]) for key in ("head", "tail") if key in inputs}
        parameters = {"aggregation_strategy": "none"} if task == "token-classification" else {}
        return loaded[name].answer(texts, spans, inputs.get("candidate_labels", ()), parameters)

    return answer


def ask(server, protocol, model, inputs, **parameters):
    """One row's outputs by name over a protocol."""
    if protocol == "generate":
        return generate(server, model, inputs, **parameters)
    send = infer_grpc if protocol == "grpc" else infer_http
    return send(server, model, {name: [value] for name, value in inputs.items()}, **parameters).row(0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("model", "inputs"), ASKED)
def test_the_answer_is_that_of_transformers(encoder_server, source_models, model, inputs, protocol):
    parameters = {"aggregation_strategy": "none"} if model == "tag" else {}
    answer = ask(encoder_server, protocol, model, inputs, **parameters)
    expected = source_models(model, inputs)
    for name in set(expected) - {"result"}:
        if name in ("score", "scores", "embedding"):
            np.testing.assert_allclose(answer[name], expected[name], atol=SCORE_TOLERANCE, rtol=0)
        else:
            assert answer[name] == expected[name], name
    assert set(answer) == {spec.name for spec in encoder_outputs(SOURCES[model].task)}
    if "result" in answer:
        assert json.loads(answer["result"][0])


@pytest.mark.parametrize("model", SOURCES)
def test_a_model_declares_its_tasks_tensors_and_is_batched_and_not_decoupled(encoder_server, model):
    task = SOURCES[model].task
    config = httpx.get(f"{encoder_server.http_url}/v2/models/{model}/config", trust_env=False).json()

    def declared(kind):
        return [(each["name"], each["data_type"], tuple(each["dims"])) for each in config[kind]]

    assert declared("input") == [(spec.name, spec.data_type, spec.dims) for spec in encoder_inputs(task)]
    assert declared("output") == [(spec.name, spec.data_type, spec.dims) for spec in encoder_outputs(task)]
    assert {each["name"] for each in config["input"] if each["optional"]} == {s.name for s in encoder_inputs(task) if s.optional}
    assert config["max_batch_size"] == DEFAULT_MAX_BATCH_SIZE and "dynamic_batching" in config
    assert not config.get("model_transaction_policy", {}).get("decoupled", False)


def test_there_is_a_model_for_every_task():
    assert {source.task for source in SOURCES.values()} == set(ENCODER_TASKS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parameters_reach_the_task_over_every_protocol(encoder_server, protocol):
    answer = ask(encoder_server, protocol, "classify", {"text_input": SHORT}, top_k=2, function_to_apply="none")
    assert len(json.loads(answer["result"][0])) == 2
    assert abs(sum(answer["scores"]) - 1) > 1e-3, "logits, not probabilities"


def test_candidate_labels_may_come_as_a_parameter(encoder_server):
    as_tensor = ask(encoder_server, "grpc", "zero-shot", QUESTIONS["zero-shot"][0])
    for labels in ("city, food, film", '["city", "food", "film"]'):
        assert ask(encoder_server, "grpc", "zero-shot", {"text_input": SHORT}, candidate_labels=labels) == as_tensor


def test_a_long_document_is_read_to_its_end_unless_it_is_to_be_truncated(encoder_server):
    text = "good film " * 200
    whole = [ask(encoder_server, "grpc", "classify", {"text_input": text + end})["scores"] for end in ("", "bad food")]
    cut = [
        ask(encoder_server, "grpc", "classify", {"text_input": text + end}, truncation=True)["scores"] for end in ("", "bad food")
    ]
    assert whole[0] != whole[1] and cut[0] == cut[1]
