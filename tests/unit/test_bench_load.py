"""The loops and figures of `fastserve bench serve`, with a server and a clock that live in the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fastserve.errors import ToolError
from fastserve.tools import cli, client, encoder_client
from fastserve.tools.bench import load
from fastserve.tools.bench.samples import Sample, summarize
from fastserve.tools.client import GenerateRequest, GenerateResponse, RequestFailed, ServerUnreachable
from tests.encoder_client_double import FakeEncoderClient


class SteppedClock:
    """Stands still but for waiting."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait_until(self, at: float) -> None:
        self.time = max(self.time, at)


class FakeGenerateClient:
    """Each request's responses are what ``answers`` says of its prompt: (arrival, tokens, finish reason) or an error. Arrivals
    are seconds after what ``begin`` says when the request is sent."""

    def __init__(self, answers: Mapping[str, list[Any]], begin: Callable[[], float] = lambda: 0.0) -> None:
        self.answers = answers
        self.begin = begin
        self.requests: list[GenerateRequest] = []

    def stream(self, request: GenerateRequest) -> Any:
        self.requests.append(request)
        return FakeStream(self.answers[request.text or "ids"], self.begin())

    def __enter__(self) -> FakeGenerateClient:
        return self

    def __exit__(self, *_: object) -> None: ...


class FakeStream:
    def __init__(self, script: list[Any], begin: float) -> None:
        self.script = script
        self.begin = begin

    def __enter__(self) -> Iterator[GenerateResponse]:
        return self.responses()

    def __exit__(self, *_: object) -> None: ...

    def responses(self) -> Iterator[GenerateResponse]:
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            arrival, tokens, reason = item
            tensors = {"num_output_tokens": [tokens], "finish_reason": [reason or "None"], "num_input_tokens": [4]}
            yield GenerateResponse(tensors, self.begin + arrival)


def ask(script: list[Any], started: float = 100.0) -> Sample:
    fake: Any = FakeGenerateClient({"p": script})
    return load.ask_generator(fake, GenerateRequest("llama", text="p"), started, SteppedClock())


def test_a_stream_gives_first_token_gaps_normalised_latency_and_completion() -> None:
    sample = ask([(101.0, 1, None), (103.0, 4, None), (104.0, 1, None), (106.0, 0, "stop")])
    assert (sample.first, sample.gaps, sample.output_tokens) == (1.0, [0.5, 0.5, 0.5, 0.5, 1.0], 6)
    assert (sample.completion, sample.input_tokens, sample.error) == (6.0, 4, None)
    summary = summarize([sample])
    assert summary.distributions["normalized"].mean == pytest.approx(1.0)
    assert summary.distributions["inter_token"].percentiles[50] == 0.5
    assert (summary.tokens_per_second, summary.requests_per_second) == (pytest.approx(1.0), pytest.approx(1 / 6))


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ([(101.0, 1, None), RequestFailed("UNAVAILABLE", "queue full")], "UNAVAILABLE"),
        ([ServerUnreachable("gone")], "UNREACHABLE"),
        ([(101.0, 1, None)], load.UNFINISHED),
        ([ToolError("closed")], "ToolError"),
    ],
)
def test_a_request_that_fails_is_counted_by_status_and_in_no_figure(script: list[Any], status: str) -> None:
    summary = summarize([ask(script), ask([(102.0, 2, "length")])])
    assert summary.failures == {status: 1}
    assert (summary.requests, summary.succeeded, summary.output_tokens) == (2, 1, 2)
    assert summary.distributions["completion"].mean == 2.0


def test_a_load_in_which_everything_failed_has_no_distributions() -> None:
    summary = summarize([ask([ServerUnreachable("gone")])])
    assert summary.distributions == {} and summary.succeeded == 0


def test_a_closed_loop_has_as_many_requests_under_way_as_users_and_no_more() -> None:
    together, most, lock, met = 0, 0, threading.Lock(), threading.Barrier(3)

    def ask_slowly(number: int, due: float) -> Sample:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        met.wait(10)  # three at once, or this breaks
        with lock:
            together -= 1
        return Sample(due, due + 1, input_tokens=number)

    seen: list[Sample] = []
    samples = load.closed_loop(ask_slowly, 9, 3, SteppedClock(), seen.append)
    assert most == 3 and seen == samples
    assert sorted(sample.input_tokens or 0 for sample in samples) == list(range(9))


def test_an_open_loop_sends_when_requests_are_due_though_none_was_answered() -> None:
    clock, due, everyone = SteppedClock(), [0.0, 1.5, 1.5, 4.0], threading.Barrier(4)
    started: dict[int, float] = {}

    def ask_forever(number: int, at: float) -> Sample:
        started[number] = at
        everyone.wait(10)  # answered only when all have been sent
        return Sample(at, at + 10)

    samples = load.open_loop(ask_forever, due, clock, lambda sample: None)
    assert [started[number] for number in range(4)] == [100.0, 101.5, 101.5, 104.0]
    assert len(samples) == 4 and clock.now() == 104.0


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_bug_in_the_client_ends_the_benchmark_instead_of_hanging_it(loop: str) -> None:
    def ask_wrongly(number: int, due: float) -> Sample:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        if loop == "open":
            load.open_loop(ask_wrongly, [0.0, 0.1], SteppedClock(), lambda sample: None)
        else:
            load.closed_loop(ask_wrongly, 2, 1, SteppedClock(), lambda sample: None)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeGenerateClient:
    """A server with the language model "llama", which answers everything with three tokens."""
    answers = {prompt: [(1.0, 1, None), (2.0, 2, "length")] for prompt in ("ids", "one", "two")}
    fake = FakeGenerateClient(answers, time.monotonic)
    monkeypatch.setattr(client, "connect", lambda url: fake)
    monkeypatch.setattr(encoder_client, "connect_encoder", FakeEncoderClient(lambda request: {}).connect)
    return fake


def test_the_command_prints_the_figures_and_writes_them_with_the_settings(
    served: FakeGenerateClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    arguments = ["--requests", "6", "--concurrency", "2", "--input-tokens", "3-4", "--json", str(out), "--parameter", "top_k=5"]
    assert cli.main(["bench", "serve", "llama", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "6 of 6 requests" in shown and "time to first token" in shown and "normalised latency" in shown
    found = json.loads(out.read_text())
    assert (found["requests"], found["output_tokens"], found["failures"]) == (6, 18, {})
    assert found["settings"]["concurrency"] == 2 and found["settings"]["input_tokens"] == "3-4"
    assert len(served.requests) == 8  # two to warm up
    assert {request.parameters["top_k"] for request in served.requests} == {5}
    assert all(request.parameters["ignore_eos"] is True for request in served.requests)


def test_failures_are_shown_with_their_message_and_make_the_exit_code_one(
    served: FakeGenerateClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    served.answers = {"one": [(1.0, 1, "stop")], "two": [RequestFailed("UNAVAILABLE", "queue full")]}
    assert cli.main(["bench", "serve", "llama", "--requests", "4", "--warm-up", "1", "--prompts", str(prompts)]) == 1
    shown = capsys.readouterr().out
    assert "2 failed: 2 UNAVAILABLE" in shown and "queue full" in shown


def test_a_warm_up_that_fails_ends_the_benchmark_with_the_reason(
    served: FakeGenerateClient, capsys: pytest.CaptureFixture[str]
) -> None:
    served.answers = {"ids": [RequestFailed("INVALID_ARG", "input_ids: got 255, allowed: below 200")]}
    assert cli.main(["bench", "serve", "llama"]) == 1
    assert "INVALID_ARG: input_ids: got 255" in capsys.readouterr().err


def test_an_encoder_is_measured_in_latency_and_requests_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = FakeEncoderClient(lambda request: {"result": ["[]"]}, task="token-classification")
    monkeypatch.setattr(encoder_client, "connect_encoder", encoder.connect)
    assert cli.main(["bench", "serve", "ner", "--requests", "5", "--rate", "10000"]) == 0
    shown = capsys.readouterr().out
    assert "requests/s" in shown and "completion" in shown and "tokens/s" not in shown and "first token" not in shown
    assert len(encoder.requests) == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--speed", "2"], "name one with --trace"),
        (["--warm-up", "-1"], "--warm-up: got -1"),
        (["--trace", "/nowhere"], "cannot be read"),
        (["--prompts", "/nowhere"], "cannot be read"),
        (["--json", "/nowhere/x", "--requests", "1"], "cannot be written"),
    ],
)
@pytest.mark.usefixtures("served")
def test_a_mistake_is_one_readable_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "serve", "llama", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "serve", "llama", "--url", "127.0.0.1:9"]) == 1
    assert "is the server running there?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--rate", "0"], ["--rate", "nan"], ["--concurrency", "0"], ["--rate", "1", "--concurrency", "1"]]
)
def test_wrong_usage_is_exit_code_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "serve", "llama", *arguments])
    assert ended.value.code == 2
