"""``infer`` and ``chat`` against a client made here: what is sent, what is shown, what is remembered."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import fastserve
from fastserve.errors import FastServeError
from fastserve.tools import chat, cli, infer
from fastserve.tools.answer import Answer, generate
from fastserve.tools.client import GenerateRequest, GenerateResponse, RequestFailed, ServerUnreachable
from fastserve.tools.ordered_requests import in_order

ENDLESS = "a piece after which the answer goes on"

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
        if piece == ENDLESS:
            return GenerateResponse({"text_output": ["half"], "finish_reason": ["None"], "num_output_tokens": [2]}, 0.0)
        texts = piece.split("|")  # of several answers
        reasons = ["length"] * len(texts)
        return GenerateResponse({"text_output": texts, "finish_reason": reasons, "num_output_tokens": [2]}, 0.0)

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

    def model_parameters(self, model: str) -> dict[str, str]:
        return {}

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
        monkeypatch.setattr(infer, "connect_encoder", client.connect)
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


def test_any_parameter_of_the_contract_can_be_given_and_every_answer_is_shown(serve: Serve, capsys: Capture) -> None:
    client = serve(lambda request: ["one|uno", " two| due"])
    given = ["n=2", 'bad_words=["the end"]', "tools=[half", "logprobs=3"]
    assert cli.main(["infer", "m", "count", *(part for each in given for part in ("--parameter", each))]) == 0
    assert client.requests[0].parameters == {
        "max_tokens": 128,
        "n": 2,
        "bad_words": ["the end"],
        "tools": "[half",
        "logprobs": 3,
    }
    out, _ = capsys.readouterr()
    assert "one two\nuno due\n" in out
    assert cli.main(["infer", "m", "count", "--parameter", "n=2", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["text"], line["other_texts"]) == ("one two", ["uno due"])


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
    (tmp_path / "prompts").write_text("\ufefffirst\n\nzweitens: ä\u2028ö\n", encoding="utf-8")
    assert cli.main(["infer", "m", "--file", str(tmp_path / "prompts"), "--no-stream", "--protocol", "http"]) == 0
    assert sorted(str(request.text) for request in client.requests) == ["first", "zweitens: ä\u2028ö"]
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


@pytest.mark.parametrize("pieces", [[], [ENDLESS, ENDLESS]])
def test_an_answer_that_stops_without_an_ending_is_no_success(pieces: list[str]) -> None:
    client = FakeClient(lambda request: pieces)
    with pytest.raises(ServerUnreachable, match=f"ended early, after {2 * len(pieces)} tokens"):
        generate(client, GenerateRequest("m", text="x"))
    assert generate(client, GenerateRequest("m", text="x", returns=())).num_output_tokens == 2 * len(pieces)


def test_after_ctrl_c_what_the_other_prompts_meet_is_nobodys_business() -> None:
    """An exception in a thread fails the test (pytest's unhandled-thread warning)."""
    release, left = threading.Event(), threading.Semaphore(0)

    def reply(request: GenerateRequest) -> Sequence[str | BaseException]:
        if request.text != "0":
            release.wait(30)
            left.release()
            raise RuntimeError("the connection is closed")
        return ["first"]

    requests = [GenerateRequest("m", text=str(index)) for index in range(4)]
    outcomes = in_order(functools.partial(generate, FakeClient(reply)), requests, 4)
    assert isinstance(next(outcomes), Answer)
    outcomes.close()
    release.set()
    for _ in range(3):
        assert left.acquire(timeout=20)


def run_tool(code: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``code`` in a Python of its own, with this module as ``conversation``."""
    prelude = (
        "import sys\nfrom tests.unit import test_tools_conversation as conversation\n"
        "from fastserve.tools import chat, cli, infer\n"
        "client = conversation.FakeClient(lambda request: ['gr\\u00fc\\u00dfe'])\n"
        "infer.connect = infer.connect_encoder = chat.connect = client.connect\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(root), str(Path(fastserve.__file__).parent.parent)))
    command = [sys.executable, "-c", prelude + code]
    return subprocess.run(command, input=stdin, capture_output=True, env={"PYTHONPATH": path, **environment}, check=False)


def test_a_terminal_that_lacks_a_sign_shows_a_question_mark() -> None:
    done = run_tool("sys.exit(cli.main(['infer', 'm', 'x']))", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"gr??e\n"), done.stderr


@pytest.mark.parametrize("arguments", [["infer", "m", "x"], ["infer", "m", "x", "y", "--json"], ["infer", "m", "x", "y"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    done = run_tool(f"sys.stdout = open('/dev/full', 'w')\nsys.exit(cli.main({arguments}))")
    assert (done.returncode, done.stderr) == (1, b"fastserve: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("command", ["chat", "infer"])
def test_input_that_is_no_text_is_one_line(command: str) -> None:
    arguments = ["chat", "m"] if command == "chat" else ["infer", "m", "--file", "-"]
    done = run_tool(f"sys.exit(cli.main({arguments}))", b"caf\xe9\n", PYTHONUTF8="1", PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"text (" in done.stderr
