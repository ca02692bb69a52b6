"""The comparison with other engines: the same requests for all, and figures of what came when."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
from benchmarks.peers import summary, workload

PEERS = Path(workload.__file__).parent


def test_a_workload_is_the_same_every_time_and_only_the_arrivals_depend_on_the_rate(tmp_path):
    at_once, poisson = workload.draw(64, 1000), workload.draw(64, 1000, rate=2.0)
    assert at_once == workload.draw(64, 1000)
    assert [(item.prompt, item.output_tokens) for item in at_once] == [(item.prompt, item.output_tokens) for item in poisson]
    assert {item.at for item in at_once} == {0.0}
    assert poisson[0].at == 0.0 and poisson[-1].at == pytest.approx(32, rel=0.4)
    workload.save(poisson, tmp_path / "file")
    assert workload.load(tmp_path / "file") == poisson


def test_a_workload_has_the_means_it_says_and_tails():
    items = workload.draw(2000, 1000)
    prompts, outputs = [len(item.prompt) for item in items], [item.output_tokens for item in items]
    assert sum(prompts) / 2000 == pytest.approx(120, rel=0.1) and sum(outputs) / 2000 == pytest.approx(80, rel=0.1)
    assert max(outputs) == workload.LONGEST_OUTPUT and min(outputs) >= 4
    assert all(100 <= token < 1000 for token in items[0].prompt)


def record(*requests, peak_bytes=5):
    rows = [dict(zip(("at", "first", "last", "tokens"), request, strict=True)) for request in requests]
    return {"requests": rows, "peak_bytes": peak_bytes}


def test_latencies_count_from_arrival_and_throughput_from_the_beginning():
    found = summary.figures(record((0.0, 1.0, 4.0, 30), (2.0, 2.5, 10.0, 70)))
    assert found["tokens_per_s"] == pytest.approx(10)
    assert found["completion_mean"] == pytest.approx(6) and found["first_token_mean"] == pytest.approx(0.75)
    assert found["peak_bytes"] == 5


def test_of_several_runs_the_medians_count_and_a_failure_is_named(tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c", "d")]
    for file, last in zip(files, (1.0, 2.0, 4.0), strict=False):
        file.write_text(json.dumps(record((0.0, 0.5, last, 8))), encoding="utf-8")
    files[3].write_text('{"error": "failed: no luck"}', encoding="utf-8")
    found = summary.medians(files)
    assert found is not None and found["tokens_per_s"] == 4.0 and found["runs"] == [8.0, 4.0, 2.0]
    assert summary.medians(files[3:]) is None
    assert summary.reason(files[3:]) == "failed: no luck" and summary.reason([]) == "not run"


@pytest.fixture
def load(monkeypatch):
    """Imports a module as the scripts do: by its bare name."""
    monkeypatch.syspath_prepend(str(PEERS))
    return importlib.import_module


@pytest.fixture
def peer(load):
    """The module that runs in the engines' own environments."""
    return load("peer")


def test_each_of_our_rows_stands_beside_the_best_peers_by_throughput_and_by_latency(load):
    ratios, rows = load("ratios"), load("rows")
    speeds = {"fastserve-fp32": (300, 6), "openvino-fp32": (150, 10), "vllm-fp32": (100, 8), "llama_cpp-int4": (200, 12)}
    figures = {
        row: dict(zip((ratios.THROUGHPUT, ratios.LATENCY), speeds[row.key], strict=True)) if row.key in speeds else "not run"
        for row in rows.rows()
    }
    (line,) = ratios.lines(figures)
    assert line.startswith("FastServe, in process fp32: 2.00 x the tokens/s of the best fp32 peer (OpenVINO GenAI fp32), 1.50 x")
    assert line.endswith(
        "0.75 x the shortest mean JCT of any fp32 peer (vLLM (CPU) fp32), 0.75 x that of any peer (vLLM (CPU) fp32)"
    )
    assert ratios.best(figures, ratios.THROUGHPUT, "int8") is None
    alone = {row: found for row, found in figures.items() if row.ours}
    assert ratios.lines(alone) == ["FastServe, in process fp32: no peer to compare with"]


def test_every_row_has_a_name_and_records_of_its_own_and_ours_serve_the_same_models(load):
    rows = load("rows")
    found = rows.rows()
    assert len({row.name for row in found}) == len({row.key for row in found}) == len(found)
    assert {row.model for row in found if row.ours} == {"fastserve-fp32", "fastserve-int8", "fastserve-int4"}
    each = [row.name for row in rows.rows("fastserve_triton_token")]
    assert each == [f"FastServe, Triton gRPC, a response for each token {precision}" for precision in ("fp32", "int8")]


def test_no_engine_has_seen_the_beginning_of_a_prompt_in_its_warm_up(peer):
    items = workload.draw(8, 1000)
    beginnings = [tuple(item.prompt[:16]) for item in items]
    assert all(tuple(item.prompt[:16]) not in beginnings for item in peer.warm_up_items(items))


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "gpt2"])
def test_a_made_model_has_the_parameters_of_the_one_whose_shape_it_has(load, name):
    made_models = load("made_models")
    sizes = made_models.tensors(made_models.SHAPES[name])
    known = {"qwen2.5-0.5b": 494_032_768, "gpt2": 124_439_808}
    assert sum(math.prod(size) for size in sizes.values()) == known[name]


class TwoATime:
    """Gives two tokens of the first request it has, until it has given all."""

    def __init__(self):
        self.open = {}

    def add(self, index, item):
        self.open[index] = item.output_tokens

    def step(self):
        index = next(iter(self.open))
        tokens = min(2, self.open[index])
        self.open[index] -= tokens
        if not self.open[index]:
            del self.open[index]
        yield index, tokens

    @property
    def has_work(self):
        return bool(self.open)


def test_an_engine_is_driven_until_every_request_has_its_tokens(peer):
    items = [workload.Item(0.0, [1], 3), workload.Item(0.001, [1, 2], 4)]
    found = peer.drive(TwoATime(), items).as_json()["requests"]
    assert [row["tokens"] for row in found] == [3, 4]
    assert found[0]["last"] < found[1]["first"] <= found[1]["last"] and found[1]["first"] >= 0.001


def test_an_engine_that_gives_another_number_of_tokens_has_no_record(peer):
    found = peer.Record([workload.Item(0.0, [1], 3)])
    found.add(0, 2)
    with pytest.raises(ValueError, match="1 requests got another number of tokens"):
        found.as_json()
