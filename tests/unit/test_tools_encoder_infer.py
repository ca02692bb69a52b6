"""``fastserve infer`` with an encoder model: what is sent for which arguments, and what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fastserve.tools import cli, infer
from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderRequest, Outputs
from tests.encoder_client_double import Answer, FakeEncoderClient, ranked

Serve = Callable[..., FakeEncoderClient]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    def install(
        task: str | None, answer: Answer = lambda request: ranked({"a": 0.25, "b": 0.75}), **more: Any
    ) -> FakeEncoderClient:
        client = FakeEncoderClient(answer, task, **more)
        monkeypatch.setattr(infer, "connect_encoder", client.connect)
        monkeypatch.setattr(infer, "connect", lambda url: pytest.fail("the generation contract was asked"))
        return client

    return install


def test_one_text_is_answered_with_its_result_as_json(serve: Serve, capsys: Capture) -> None:
    client = serve("text-classification")
    arguments = ["--parameter", "top_k=2", "--parameter", "function_to_apply=none", "--parameter", "x=[1]", "--url", "host:1"]
    assert cli.main(["infer", "m", "Größe", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]
    assert client.requests == [
        EncoderRequest({"text_input": "Größe"}, parameters={"top_k": 2, "function_to_apply": "none", "x": "[1]"})
    ]
    assert (client.url, client.models) == ("host:1", {"m"})


def test_several_texts_are_shown_in_their_order_and_as_lines_for_programs(serve: Serve, capsys: Capture) -> None:
    serve("text-classification", lambda request: ranked({request.texts["text_input"]: 1.0}))
    assert cli.main(["infer", "m", "one", "two", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"text_input": text, "result": [{"label": text, "score": 1.0}]} for text in ("one", "two")]
    assert cli.main(["infer", "m", "one", "two"]) == 0
    out = capsys.readouterr().out
    assert out.index("> one") < out.index('"one"') < out.index("> two")


@pytest.mark.parametrize(
    ("prompts", "pairs", "sent"),
    [
        (["q"], ["a", "b"], [("q", "a"), ("q", "b")]),
        (["p", "q"], ["a"], [("p", "a"), ("q", "a")]),
        (["p", "q"], ["a", "b"], [("p", "a"), ("q", "b")]),
    ],
)
def test_second_texts_go_with_their_prompts(
    serve: Serve, prompts: list[str], pairs: list[str], sent: list[tuple[str, str]]
) -> None:
    client = serve("reranking", lambda request: {"score": [0.5], "result": ['{"score": 0.5}']})
    arguments = [argument for pair in pairs for argument in ("--pair", pair)]
    assert cli.main(["infer", "m", *prompts, *arguments, "--concurrency", "1"]) == 0
    assert [tuple(request.texts.values()) for request in client.requests] == sent
    assert list(client.requests[0].texts) == ["text_input", "text_pair"]


def test_questions_are_asked_about_the_context(serve: Serve, capsys: Capture) -> None:
    client = serve("question-answering", lambda request: {"result": ['[{"answer": "Ada"}]']})
    assert cli.main(["infer", "m", "--question", "Who?", "--context", "Ada."]) == 0
    assert client.requests[0].texts == {"question": "Who?", "context": "Ada."}


def test_spans_and_candidate_labels_are_sent(serve: Serve) -> None:
    client = serve("zero-shot-classification")
    assert cli.main(["infer", "m", "x", "--candidate-labels", "travel, food,", "--head", "0:3", "--tail", "8:11"]) == 0
    assert client.requests[0].candidate_labels == ("travel", "food")
    assert client.requests[0].spans == {"head": (0, 3), "tail": (8, 11)}


def test_an_embedding_is_one_line(serve: Serve, capsys: Capture) -> None:
    serve("feature-extraction", lambda request: {"embedding": [0.5, -0.5]})
    assert cli.main(["infer", "m", "x"]) == 0
    assert capsys.readouterr().out == '{"embedding": [0.5, -0.5]}\n'


def test_a_failed_text_does_not_stop_the_others_and_makes_the_exit_code_one(serve: Serve, capsys: Capture) -> None:
    def answer(request: EncoderRequest) -> Outputs:
        if request.texts["text_input"] == "two":
            raise RequestFailed("INVALID_ARG", "text_input: empty")
        return ranked({"a": 1.0})

    serve("text-classification", answer)
    assert cli.main(["infer", "m", "one", "two", "three"]) == 1
    out, err = capsys.readouterr()
    assert out.count('"label"') == 2 and err == "fastserve: 'two': INVALID_ARG: text_input: empty\n"
    assert cli.main(["infer", "m", "two", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"text_input": "two", "error": "INVALID_ARG: text_input: empty"}


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("token-classification", ["x", "--pair", "y"], "--pair is for text-classification and reranking"),
        ("text-classification", ["x", "--context", "y"], "--question and --context are for question-answering"),
        ("question-answering", ["x"], "give the questions and one --context"),
        ("reranking", ["a", "b", "--pair", "1", "--pair", "2", "--pair", "3"], "2 prompts and 3 --pair"),
        ("text-classification", ["x", "--temperature", "0"], "it samples nothing"),
        ("text-classification", [], "no prompt given"),
        (None, ["x", "--candidate-labels", "a,b"], "--candidate-labels is for encoder models; m generates text"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(
    serve: Serve, capsys: Capture, task: str | None, arguments: list[str], message: str
) -> None:
    client = serve(task)
    assert cli.main(["infer", "m", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert client.requests == []


@pytest.mark.parametrize("arguments", [["--parameter", "top_k"], ["--parameter", "=3"], ["--head", "0-3"], ["--tail", "a:b"]])
def test_arguments_of_the_wrong_form_are_wrong_usage(serve: Serve, arguments: list[str]) -> None:
    serve("text-classification")
    with pytest.raises(SystemExit) as ended:
        cli.main(["infer", "m", "x", *arguments])
    assert ended.value.code == 2


def test_a_server_that_does_not_tell_the_task_is_asked_to_generate(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(None, refusal=RequestFailed("UNSUPPORTED", "no such method"))
    asked: list[str] = []

    def connect(url: str) -> object:
        asked.append(url)
        raise RequestFailed("NOT_FOUND", "unknown model")

    monkeypatch.setattr(infer, "connect", connect)
    assert cli.main(["infer", "m", "x"]) == 1
    assert asked == ["127.0.0.1:8001"]
