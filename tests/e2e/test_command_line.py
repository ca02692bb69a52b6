"""The commands a user types, against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.tools.ports import free_ports

FASTSERVE = [sys.executable, "-m", "fastserve.tools.cli"]


def run(*arguments, stdin=""):
    return subprocess.run([*FASTSERVE, *arguments], input=stdin, capture_output=True, text=True, timeout=300, check=False)


def server_arguments(server, protocol):
    return ("--protocol", protocol, "--url", server.http_url if protocol == "http" else server.grpc_url)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_infer_answers_several_prompts_in_their_order(server, protocol):
    done = run("infer", "llama", "one", "two", "three", "--json", "--seed", "5", *server_arguments(server, protocol))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two", "three"]
    assert all(row["finish_reason"] in ("stop", "length") for row in rows)


def test_infer_gives_the_same_answer_over_both_protocols_streamed_or_not(server):
    asked = ("infer", "llama", "hello", "--temperature", "0", "--max-tokens", "12")
    answers = {
        run(*asked, *server_arguments(server, protocol), stream).stdout
        for protocol in ("grpc", "http")
        for stream in ("--stream", "--no-stream")
    }
    assert len(answers) == 1
    assert answers.pop().strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "hello"), "nobody"),
        (("llama", "hello", "--temperature", "-1"), "temperature: got -1.0, allowed: a number from 0"),
        (("llama", "hello", "--url", "127.0.0.1:9"), "is the server running there?"),
    ],
)
def test_a_mistake_is_one_readable_line_and_exit_code_1(server, arguments, words):
    given = arguments if "--url" in arguments else (*arguments, *server_arguments(server, "grpc"))
    done = run("infer", *given)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_chat_through_a_pipe_answers_each_line(server):
    done = run("chat", "llama", "--max-tokens", "8", "--seed", "1", *server_arguments(server, "grpc"), stdin="hello\nand again\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.count("tokens, first after") == 2  # how fast it went on shows only in answers of several pieces


@pytest.fixture
def children_hear_ctrl_c():
    """A shell that runs the tests in the background has them ignore SIGINT, which a child would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("children_hear_ctrl_c")
def test_serve_says_what_is_ready_and_ends_cleanly_on_ctrl_c(tmp_path, sources):
    export_model(str(sources["llama"]), ExportOptions(output=tmp_path, name="llama"))
    http, grpc, metrics = map(str, free_ports("127.0.0.1", 3))
    command = [*FASTSERVE, "serve", "--model-repository", str(tmp_path)]
    command += ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        shown = ""
        while "llama" not in shown or "curl" not in shown:
            line = process.stdout.readline()
            assert line, f"serve ended: {shown}"
            shown += line
        answer = run("infer", "llama", "hello", "--url", f"127.0.0.1:{grpc}")
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert answer.returncode == 0, answer.stderr
    assert process.returncode == 0, rest
    assert "Traceback" not in shown + rest
