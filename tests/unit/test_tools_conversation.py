"""``infer`` and ``chat`` against a client made here: what is sent, what is shown, what is remembered."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fastserve.errors import FastServeError
from fastserve.tools import chat, cli, infer
from fastserve.tools.answer import Answer
from fastserve.tools.client import GenerateRequest, GenerateResponse, RequestFailed, ServerUnreachable

Reply = Callable[[GenerateRequest], Sequence[str | BaseException]]


class FakeStream:
    def __init__(self, pieces: Sequence[str | BaseException]) -> None:
        self._pieces = iter(pieces)

    def __iter__(self) -> Iterator[GenerateResponse]:
        return self

    def __next__(self) -> GenerateResponse:
        piece = next(self._pieces)
        if isinstance(piece, BaseException):
            raise piece
        return GenerateResponse({"text_output": [piece], "finish_reason": ["length"], "num_output_tokens": [2]}, 0.0)

    def close(self) -> None: ...

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None: ...


class FakeClient:
    """Answers each request with the pieces ``reply`` gives for it; an exception among them is raised there."""

    def __init__(self, reply: Reply) -> None:
        self.requests: list[GenerateRequest] = []
        self.url = ""
        self._reply = reply

    def connect(self, url: str) -> FakeClient:
        self.url = url
        return self

    def stream(self, request: GenerateRequest) -> FakeStream:
        self.requests.append(request)
        return FakeStream(self._reply(request))

    def close(self) -> None: ...

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None: ...


Serve = Callable[[Reply], FakeClient]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    def install(reply: Reply) -> FakeClient:
        client = FakeClient(reply)
        monkeypatch.setattr(infer, "connect", client.connect)
        monkeypatch.setattr(chat, "connect", client.connect)
        return client

    return install


def talk(monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str) -> int:
    """Run ``chat`` with ``lines`` piped in."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return cli.main(["chat", "m", *arguments])


def test_a_single_prompt_is_shown_as_it_comes_and_its_speed_goes_to_stderr(serve: Serve, capsys: Capture) -> None:
    client = serve(lambda request: ["Par", "is"])
    assert cli.main(["infer", "m", "capital?", "--temperature", "0", "--stop", "\n", "--stop", "END"]) == 0
    out, err = capsys.readouterr()
    assert out == "Paris\n" and "4 tokens" in err
    (request,) = client.requests
    assert (request.model, request.text, request.stream) == ("m", "capital?", True)
    assert request.parameters == {"max_tokens": 128, "temperature": 0.0, "stop": ["\n", "END"]}


def test_several_prompts_run_at_the_same_time_and_are_reported_in_their_order(serve: Serve, capsys: Capture) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def meet(request: GenerateRequest) -> list[str]:
        meeting.wait()  # passes only when all three are in flight
        return [f"answer to {request.text}"]

    serve(meet)
    assert cli.main(["infer", "m", "one", "two", "three", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["one", "two", "three"]
    assert [line["text"] for line in lines] == ["answer to one", "answer to two", "answer to three"]
    assert lines[0]["finish_reason"] == "length" and lines[0]["num_output_tokens"] == 2


def test_a_failed_prompt_does_not_stop_the_others_and_makes_the_exit_code_one(serve: Serve, capsys: Capture) -> None:
    serve(lambda request: [RequestFailed("UNAVAILABLE", "full")] if request.text == "two" else ["fine"])
    assert cli.main(["infer", "m", "one", "two"]) == 1
    out, err = capsys.readouterr()
    assert "fine" in out and "'two': UNAVAILABLE: full" in err


def test_prompts_come_from_a_file_a_line_each(serve: Serve, tmp_path: Path) -> None:
    client = serve(lambda request: ["ok"])
    (tmp_path / "prompts").write_text("first\n\nzweitens: ä\n", encoding="utf-8")
    assert cli.main(["infer", "m", "--file", str(tmp_path / "prompts"), "--no-stream", "--protocol", "http"]) == 0
    assert sorted(str(request.text) for request in client.requests) == ["first", "zweitens: ä"]
    assert all(not request.stream and request.exclude_input_in_output for request in client.requests)
    assert client.url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("arguments", [[], ["--file", "/no/such/file"]])
def test_infer_without_a_prompt_says_so(arguments: list[str], serve: Serve, capsys: Capture) -> None:
    serve(lambda request: [])
    assert cli.main(["infer", "m", *arguments]) == 1
    assert capsys.readouterr().err.startswith("fastserve: ")


def test_the_conversation_so_far_goes_with_every_turn(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(lambda request: ["a", "ha"])
    assert talk(monkeypatch, "hello\nreally?\n", "--system", "Be brief.", "--url", "host:1") == 0
    assert client.url == "host:1"
    assert client.requests[1].text is None
    assert client.requests[1].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "aha"},
        {"role": "user", "content": "really?"},
    ]


def test_reset_system_and_exit_are_commands_and_are_not_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(lambda request: ["x"])
    assert talk(monkeypatch, "one\n/reset\n/system Rhyme.\n/unknown\ntwo\n/exit\nthree\n") == 0
    assert [list(request.messages or ()) for request in client.requests] == [
        [{"role": "user", "content": "one"}],
        [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "two"}],
    ]


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(capsys: Capture) -> None:
    client = FakeClient(lambda request: ["half ", KeyboardInterrupt()])
    conversation = chat.Conversation(client, "m", {})
    with pytest.raises(KeyboardInterrupt):
        conversation.say("go")
    assert conversation.messages == [{"role": "user", "content": "go"}, {"role": "assistant", "content": "half "}]


def test_a_turn_that_failed_is_not_remembered() -> None:
    conversation = chat.Conversation(FakeClient(lambda request: [RequestFailed("INVALID_ARG", "no template")]), "m", {})
    with pytest.raises(RequestFailed):
        conversation.say("go")
    assert conversation.messages == []


@pytest.mark.parametrize("error", [RequestFailed("INVALID_ARG", "no template"), ServerUnreachable("gone")])
def test_a_failed_turn_from_a_pipe_ends_with_exit_code_one(
    error: FastServeError, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    client = serve(lambda request: [error])
    assert talk(monkeypatch, "one\ntwo\n") == 1
    assert len(client.requests) == 1
    assert str(error) in capsys.readouterr().err


def test_the_speed_counts_tokens_after_the_first_response() -> None:
    answer = Answer(started=10.0)
    for arrival, tokens in ((10.5, 1), (11.0, 2), (12.5, 3)):
        answer.add(GenerateResponse({"text_output": ["x"], "num_output_tokens": [tokens]}, arrival))
    assert (answer.time_to_first_token_s, answer.duration_s, answer.tokens_per_second) == (0.5, 2.5, 2.5)
    assert answer.speed() == "6 tokens, first after 500 ms, then 2.5 tokens/s"


def test_an_answer_in_one_piece_has_no_decoding_speed() -> None:
    answer = Answer(started=1.0)
    answer.add(GenerateResponse({"text_output": ["x"]}, 2.0))
    assert answer.tokens_per_second is None and answer.num_output_tokens == 1
