"""`fastserve bench serve` against a served encoder."""

from __future__ import annotations

import json

from fastserve.tools import cli


def test_an_encoder_is_measured_too(encoder_server, tmp_path):
    name = next(status.name for status in encoder_server.models() if encoder_server.task(status.name) == "token-classification")
    arguments = ("--requests", "10", "--concurrency", "5", "--input-tokens", "2-6", "--url", encoder_server.grpc_url)
    file = tmp_path / "found.json"
    code = cli.main(["bench", "serve", name, "--json", str(file), *arguments])
    found = json.loads(file.read_text())
    assert (code, found["task"], found["succeeded"], found["output_tokens"]) == (0, "token-classification", 10, 0)
    assert found["requests_per_second"] > 0 and set(found["distributions"]) == {"completion"}
