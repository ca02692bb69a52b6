"""`fastserve bench serve` against a real server: every token is counted, whichever loop and protocol."""

from __future__ import annotations

import json

import pytest

from fastserve.tools import cli


def bench(tmp_path, model, *arguments):
    """(exit code, what was written to the JSON file)."""
    file = tmp_path / "found.json"
    code = cli.main(["bench", "serve", model, "--json", str(file), *arguments])
    return code, json.loads(file.read_text())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_closed_loop_counts_every_token_of_every_request(server, tmp_path, protocol):
    url = server.http_url if protocol == "http" else server.grpc_url
    lengths = ("--input-tokens", "5-20", "--output-tokens", "8", "--requests", "12", "--concurrency", "4")
    code, found = bench(tmp_path, "llama", *lengths, "--url", url)
    assert code == 0
    assert (found["requests"], found["succeeded"], found["output_tokens"]) == (12, 12, 96)
    assert 12 * 5 <= found["input_tokens"] <= 12 * 20
    distributions = found["distributions"]
    assert set(distributions) >= {"time_to_first_token", "normalized", "completion"}
    for distribution in distributions.values():
        p50, p95, p99 = distribution["percentiles"].values()
        assert 0 <= p50 <= p95 <= p99
    assert distributions["time_to_first_token"]["mean"] <= distributions["completion"]["mean"]


def test_an_open_loop_plays_a_trace_with_its_lengths(server, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("time,prompt,answer\n0,10,4\n0.1,30,6\n0.2,1000,500\n")
    limits = ("--max-input-tokens", "40", "--max-output-tokens", "5", "--speed", "2")
    code, found = bench(tmp_path, "llama", "--trace", str(trace), *limits, "--url", server.grpc_url)
    assert code == 0
    assert (found["requests"], found["input_tokens"], found["output_tokens"]) == (3, 10 + 30 + 40, 4 + 5 + 5)


def test_requests_that_the_server_refuses_are_failures_with_their_status(server, tmp_path, capsys):
    arguments = ("--warm-up", "0", "--requests", "3", "--input-tokens", "5000", "--rate", "50")
    code, found = bench(tmp_path, "llama", *arguments, "--url", server.grpc_url)
    assert code == 1
    assert found["failures"] == {"INVALID_ARG": 3}
    assert "3 failed: 3 INVALID_ARG" in capsys.readouterr().out


def test_a_model_that_the_server_does_not_have_is_named(server, capsys):
    assert cli.main(["bench", "serve", "nobody", "--url", server.grpc_url]) == 1
    assert "nobody" in capsys.readouterr().err
