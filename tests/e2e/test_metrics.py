"""The numbers on Triton's /metrics page: all there, labelled, and exact."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.e2e.metrics_page import PATIENCE_S, read_metric, settled, wait_until
from tests.e2e.served_models import SERVED
from tests.e2e.test_contract_wire import Refused, ask_grpc, grpc_message, open_channel, question, start_call

MODEL = "qwen2"
FAMILIES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:num_requests_swapped": "gauge",
    "vllm:gpu_cache_usage_perc": "gauge",
    "vllm:cpu_cache_usage_perc": "gauge",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "fastserve:kv_blocks_used": "gauge",
    "fastserve:kv_blocks_free": "gauge",
    "fastserve:kv_blocks_cached": "gauge",
    "fastserve:kv_blocks_swapped": "gauge",
    "fastserve:swapped_out_total": "counter",
    "fastserve:swapped_in_total": "counter",
    "fastserve:swap_out_bytes_total": "counter",
    "fastserve:swap_in_bytes_total": "counter",
    "fastserve:swap_waits_total": "counter",
    "fastserve:iterations_total": "counter",
    "fastserve:iteration_seconds_total": "counter",
    "fastserve:requests_total": "counter",
}
TEXT = {"text_input": "hello"}
FOREVER = {"temperature": 0, "ignore_eos": True, "max_tokens": 15_000}
ENDINGS = {
    "stop": question({"stop_token_ids": list(range(269))}, **TEXT),
    "length": question({"max_tokens": 2, "ignore_eos": True}, **TEXT),
    "invalid_arg": question({"temperature": -1}, **TEXT),
    "unsupported": question({"priority": 1}, **TEXT),
    "unavailable": question(FOREVER | {"deadline_ms": 1}, input_ids=[5] * 200),
}


def page(server):
    return httpx.get(server.metrics_url, trust_env=False).text


def counters(server, model=MODEL):
    return {family: read_metric(server, family, model) for family, kind in FAMILIES.items() if kind == "counter"}


def grown(server, before, family, growth):
    """By how much each counter has grown since ``before``, once ``family`` has by ``growth`` and no number changes any more: each
    is told to the page on its own."""
    wait_until(lambda: read_metric(server, family, MODEL) >= before[family] + growth)
    after = settled(lambda: counters(server))
    return {name: after[name] - before[name] for name in after}


def endings(server, model=MODEL):
    names = (*ENDINGS, "cancelled")
    return {name: read_metric(server, "fastserve:requests_total", model, ending=name) for name in names}


def test_every_family_is_there_with_its_kind_and_help(server):
    ask_grpc(server, grpc_message(MODEL, ENDINGS["length"]))
    wait_until(lambda: "fastserve:requests_total{" in page(server))
    kinds = dict(re.findall(r"^# TYPE ((?:vllm|fastserve):\S+) (\w+)$", page(server), re.MULTILINE))
    assert kinds == FAMILIES
    helps = dict(re.findall(r"^# HELP ((?:vllm|fastserve):\S+) (\S.*)$", page(server), re.MULTILINE))
    assert set(helps) == set(FAMILIES)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "fastserve:requests_total"])
def test_every_model_has_a_line_with_its_name_and_version(server, family):
    lines = re.findall(rf"^{family}{{(.*)}} (\S+)$", page(server), re.MULTILINE)
    labels = [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line, _ in lines]
    assert sorted(label["model"] for label in labels) == sorted(SERVED)
    assert all(label == {"model": label["model"], "version": "1", "instance": f"{label['model']}_0_0"} for label in labels)
    assert all(float(value) >= 0 for _, value in lines)


def test_tokens_and_iterations_of_a_request_are_counted_exactly(server):
    before = counters(server)
    ask_grpc(server, grpc_message(MODEL, question({"max_tokens": 5, "ignore_eos": True}, input_ids=[40] * 7)))
    growth = grown(server, before, "fastserve:iterations_total", 5)
    seconds = growth.pop("fastserve:iteration_seconds_total")
    assert growth == {
        "vllm:prompt_tokens_total": 7,
        "vllm:generation_tokens_total": 5,
        "vllm:num_preemptions_total": 0,
        "vllm:prefix_cache_queries_total": 7,
        "vllm:prefix_cache_hits_total": 0,
        "fastserve:swapped_out_total": 0,
        "fastserve:swapped_in_total": 0,
        "fastserve:swap_out_bytes_total": 0,
        "fastserve:swap_in_bytes_total": 0,
        "fastserve:swap_waits_total": 0,
        "fastserve:iterations_total": 5,  # the prompt's gives the first token
        "fastserve:requests_total": 1,
    }
    assert 0 < seconds < PATIENCE_S


def test_several_answers_are_one_request_with_one_prompt_and_the_tokens_of_all(server):
    before = counters(server)
    parameters = {"max_tokens": 5, "ignore_eos": True, "n": 3, "temperature": 1}
    ask_grpc(server, grpc_message(MODEL, question(parameters, input_ids=[40] * 7)))
    growth = grown(server, before, "fastserve:iterations_total", 5)
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "fastserve:requests_total", "fastserve:iterations_total")
    assert [growth[name] for name in names] == [7, 15, 1, 5]


def test_a_prompt_in_chunks_counts_every_token_once(server):
    before = counters(server)
    ask_grpc(server, grpc_message(MODEL, question({"max_tokens": 1, "ignore_eos": True}, input_ids=[40] * 100)))
    growth = grown(server, before, "vllm:generation_tokens_total", 1)
    assert growth["vllm:prompt_tokens_total"] == 100
    assert growth["fastserve:iterations_total"] == 3  # 48 tokens each


def test_tokens_from_the_prefix_cache_are_counted_and_told_and_their_blocks_shown(server):
    prompt = [41] * 20 + [42] * 20  # two full blocks of 16
    before = counters(server)
    for hits in (0, 32):
        message = grpc_message(MODEL, question({"max_tokens": 1}, input_ids=prompt, returns=("timing",)))
        (row,) = ask_grpc(server, message)
        assert json.loads(row.values["timing"][0])["cached_tokens"] == hits
    growth = grown(server, before, "vllm:generation_tokens_total", 2)
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total")
    assert [growth[name] for name in names] == [80, 32, 80]
    wait_until(lambda: read_metric(server, "fastserve:kv_blocks_used", MODEL) == 0)
    cached = read_metric(server, "fastserve:kv_blocks_cached", MODEL)
    assert 2 <= cached <= read_metric(server, "fastserve:kv_blocks_free", MODEL)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_request_is_counted_once_by_how_it_ended(server, ending):
    before = endings(server)
    try:
        ask_grpc(server, grpc_message(MODEL, ENDINGS[ending]))
    except Refused:
        assert ending not in ("stop", "length")
    else:
        assert ending in ("stop", "length")
    wait_until(lambda: endings(server) != before)
    assert endings(server) == before | {ending: before[ending] + 1}


def test_a_cancelled_request_is_counted_as_cancelled_only(server):
    before = endings(server, "llama-long")
    with open_channel(server) as channel:
        call = start_call(channel, grpc_message("llama-long", question(FOREVER, stream=True, **TEXT)))
        next(call)
        call.cancel()
        wait_until(lambda: endings(server, "llama-long") != before)
    assert endings(server, "llama-long") == before | {"cancelled": before["cancelled"] + 1}


def test_the_gauges_show_what_runs_and_waits_and_the_blocks_add_up(server):
    families = ("vllm:num_requests_running", "vllm:num_requests_waiting", "fastserve:kv_blocks_used", "fastserve:kv_blocks_free")

    def gauges():
        return [read_metric(server, family, "llama-small-queue") for family in families]

    wait_until(lambda: gauges()[:3] == [0, 0, 0])
    pool = gauges()[3]
    assert pool == 16384 / 16
    with open_channel(server) as channel:
        message = grpc_message("llama-small-queue", question(FOREVER, input_ids=[5] * 100))
        calls = [start_call(channel, message) for _ in range(3)]
        wait_until(lambda: gauges()[:2] == [1, 2])
        wait_until(lambda: gauges()[2] >= 7 and sum(gauges()[2:]) == pool)  # two reads may lie across an update
        for call in calls:
            call.cancel()
    wait_until(lambda: gauges() == [0, 0, 0, pool])


def test_preemptions_are_counted_and_their_tokens_are_not_counted_again(server):
    """Sixteen growing requests cannot all keep their blocks in a pool of 24, once they are there together."""
    model = "llama-small-pool"
    before = counters(server, model)
    message = grpc_message(model, question({"temperature": 0, "ignore_eos": True, "max_tokens": 60}, input_ids=[5] * 30))
    sent = 0

    def some_were_preempted() -> bool:
        nonlocal sent
        with open_channel(server) as channel:
            calls = [start_call(channel, message) for _ in range(16)]
            assert all(len(list(call)) == 1 for call in calls)
        sent += 16
        tokens = before["vllm:generation_tokens_total"] + sent * 60
        wait_until(lambda: read_metric(server, "vllm:generation_tokens_total", model) >= tokens)
        return read_metric(server, "vllm:num_preemptions_total", model) > before["vllm:num_preemptions_total"]

    wait_until(some_were_preempted)
    after = counters(server, model)
    assert after["vllm:prompt_tokens_total"] - before["vllm:prompt_tokens_total"] == sent * 30
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] == sent * 60
