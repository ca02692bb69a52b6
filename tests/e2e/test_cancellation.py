"""A client that goes away, in every way it can: its request ends, its KV blocks are free, and nobody else notices.

Nobody can read the answer to a cancelled request ("Request was cancelled", CANCELLED): gRPC clients that cancel see their own
CANCELLED, closed connections see nothing, and Triton 2.51 counts every decoupled request as a success. What can be seen is the
ending that the backend counts in ``fastserve:requests_total`` and the blocks it reports.
"""

from __future__ import annotations

import concurrent.futures
import time

import grpc
import httpx
import pytest

from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.test_contract_wire import ask_grpc, grpc_message, open_channel, question, rows_of, start_call

MODEL = "llama-long"
FOREVER = {"temperature": 0, "ignore_eos": True, "max_tokens": 10_000}
"""Takes ten seconds and more, so that what ends earlier did not end by itself."""
LONG_PROMPT = [5] * 6000
"""Slows the tiny model down to what can be sent: the engine does not wait for the responses of a stream, and what is on the
metrics page comes after the tokens of a few streams that were drawn before it."""
FREED_WITHIN_S = 60.0
"""Noticed by the next look for cancelled requests (0.1 s), freed before the next iteration (a few ms), and on the metrics page
with the next update (at once when the engine is idle, else 0.25 s): 0.1 s was measured, 0.5 s should do. Many times that,
because the machine of the tests is also busy with other things; a request that ended by itself would not count as cancelled."""


def cancelled(server, model=MODEL):
    return read_metric(server, "fastserve:requests_total", model, ending="cancelled")


def blocks_used(server, model=MODEL):
    return read_metric(server, "fastserve:kv_blocks_used", model)


def start(channel, model=MODEL, parameters=FOREVER, *, stream=True, **inputs):
    return start_call(channel, grpc_message(model, question(parameters, stream=stream, **(inputs or {"input_ids": LONG_PROMPT}))))


def wait_until_blocks_show(server, model=MODEL):
    wait_until(lambda: blocks_used(server, model) > 0)


@pytest.fixture(autouse=True)
def idle(server):
    """Every test begins and ends with an empty engine."""
    for model in (MODEL, "llama-small-queue"):
        wait_until(lambda model=model: blocks_used(server, model) == 0)
    yield
    for model in (MODEL, "llama-small-queue"):
        wait_until(lambda model=model: blocks_used(server, model) == 0, FREED_WITHIN_S)


def assert_freed(server, before, model=MODEL, count=1):
    """All blocks of ``model`` are free and ``count`` more requests are counted as cancelled; after how many seconds."""
    return wait_until(lambda: cancelled(server, model) == before + count and blocks_used(server, model) == 0, FREED_WITHIN_S)


@pytest.mark.parametrize("leave", ["cancel", "close"])
def test_a_client_that_leaves_over_grpc_frees_its_blocks_in_moments(server, leave):
    """The best of seven, as seen on the metrics page; half a second on a quiet machine, which that of the tests is not: they run
    two at a time."""
    seconds = []
    for _ in range(7):
        before = cancelled(server)
        with open_channel(server) as channel:
            call = start(channel)
            next(call)
            wait_until_blocks_show(server)
            if leave == "cancel":
                call.cancel()
        seconds.append(assert_freed(server, before))
    print(f"{leave}: blocks free after {sorted(round(each, 3) for each in seconds)} s")
    assert min(seconds) <= 2.0


@pytest.mark.parametrize("stream", [True, False])
def test_a_grpc_cancel_frees_the_blocks(server, stream):
    before = cancelled(server)
    with open_channel(server) as channel:
        call = start(channel, stream=stream)
        wait_until_blocks_show(server)
        call.cancel()
        assert_freed(server, before)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_a_cancel_ends_every_answer_of_a_request(server):
    before = cancelled(server)
    with open_channel(server) as channel:
        call = start(channel, parameters=FOREVER | {"n": 4, "temperature": 1})
        next(call)
        wait_until_blocks_show(server)
        call.cancel()
        assert_freed(server, before)


def test_a_closed_grpc_channel_frees_the_blocks(server):
    before = cancelled(server)
    with open_channel(server) as channel:
        call = start(channel)
        next(call)
        wait_until_blocks_show(server)
    assert_freed(server, before)


def test_a_grpc_timeout_of_the_client_frees_the_blocks(server):
    before = cancelled(server)
    message = grpc_message(MODEL, question(FOREVER, input_ids=LONG_PROMPT, stream=True))
    with open_channel(server) as channel:
        method = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer", lambda each: each.SerializeToString(), lambda raw: raw
        )
        with pytest.raises(grpc.RpcError) as caught:
            for _ in method(iter((message,)), timeout=0.5):
                pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_freed(server, before)


def test_a_cancel_during_a_long_prefill_frees_the_blocks(server):
    before = cancelled(server)
    with open_channel(server) as channel:
        call = start(channel, input_ids=[5] * 16_000)
        wait_until_blocks_show(server)
        call.cancel()
        assert_freed(server, before)


def test_an_http_stream_that_is_closed_frees_the_blocks(server):
    """Triton sees that the client is gone when it writes the next delta."""
    before = cancelled(server)
    url = f"{server.http_url}/v2/models/{MODEL}/generate_stream"
    with httpx.stream(
        "POST", url, json=question(FOREVER, input_ids=LONG_PROMPT, stream=True), timeout=300, trust_env=False
    ) as answer:
        lines = answer.iter_lines()  # kept: an iterator that is collected closes the connection
        next(lines)
        wait_until_blocks_show(server)
    assert_freed(server, before)


def test_an_http_request_that_does_not_stream_is_freed_at_its_deadline_when_its_client_is_gone(server):
    """Triton looks at the connection when it writes, which is at the end: until then only the deadline ends the request."""
    unavailable, before = read_metric(server, "fastserve:requests_total", MODEL, ending="unavailable"), cancelled(server)
    url, deadline_s = f"{server.http_url}/v2/models/{MODEL}/generate", 1.5
    body = question(FOREVER | {"deadline_ms": int(deadline_s * 1000)}, input_ids=LONG_PROMPT)
    start_time = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, timeout=0.5, trust_env=False)
    wait_until_blocks_show(server)
    wait_until(lambda: blocks_used(server) == 0, deadline_s + FREED_WITHIN_S)
    assert deadline_s <= time.monotonic() - start_time < deadline_s + FREED_WITHIN_S
    wait_until(lambda: read_metric(server, "fastserve:requests_total", MODEL, ending="unavailable") == unavailable + 1)
    assert cancelled(server) == before


def test_a_request_that_waits_in_the_queue_can_be_cancelled(server):
    model = "llama-small-queue"  # serves one request at a time
    before = cancelled(server, model)
    waiting = lambda: read_metric(server, "vllm:num_requests_waiting", model)  # noqa: E731
    with open_channel(server) as channel, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: len(list(rows_of(start(channel, model, stream=False)))))
        wait_until_blocks_show(server, model)
        call = start(channel, model)
        wait_until(lambda: waiting() == 1)
        call.cancel()
        wait_until(lambda: waiting() == 0 and cancelled(server, model) == before + 1, FREED_WITHIN_S)
        assert not running.done(), "the running request was over too early: give it more tokens"
        assert running.result() == 1
    assert_freed(server, before, model)


def test_cancelling_some_of_several_leaves_the_tokens_of_the_others(server):
    before = cancelled(server)
    kept = [grpc_message(MODEL, sampled(seed)) for seed in range(3)]
    alone = [tokens(ask_grpc(server, message)) for message in kept]
    with open_channel(server) as channel, concurrent.futures.ThreadPoolExecutor(len(kept)) as pool:
        going = [start(channel, stream=False, input_ids=[5 + each] * 100) for each in range(5)]
        wait_until(lambda: read_metric(server, "vllm:num_requests_running", MODEL) == len(going))
        streams = [rows_of(start_call(channel, message)) for message in kept]
        begun = [next(stream) for stream in streams]  # now all eight run
        for call in going:
            call.cancel()
        answers = [pool.submit(lambda row=row, rows=rows: tokens([row, *rows])) for row, rows in zip(begun, streams, strict=True)]
        wait_until(lambda: cancelled(server) == before + len(going), FREED_WITHIN_S)
        assert not any(answer.done() for answer in answers), "the others were over too early: give them more tokens"
        assert [answer.result() for answer in answers] == alone
    assert_freed(server, before, count=len(going))


def sampled(seed):
    parameters = {"seed": seed, "ignore_eos": True, "max_tokens": 5000}
    return question(parameters, text_input="one two three", stream=True, returns=("output_ids",))


def tokens(rows):
    return [token for row in rows for token in row.values["output_ids"]]


def test_many_cancelled_at_once_are_all_freed(server):
    """More than one sweep looks at (64)."""
    before, count = cancelled(server), 130
    with open_channel(server) as channel:
        calls = [start(channel, stream=False, input_ids=[5] * 10) for _ in range(count)]
        wait_until(
            lambda: sum(read_metric(server, f"vllm:num_requests_{state}", MODEL) for state in ("running", "waiting")) == count, 20
        )
        for call in calls:
            call.cancel()
        assert_freed(server, before, count=count)


def test_a_cancel_after_the_end_changes_nothing(server):
    before = cancelled(server)
    with open_channel(server) as channel:
        call = start_call(channel, grpc_message(MODEL, short(5)))
        assert len(tokens(rows_of(call))) == 5
        call.cancel()
        assert len(tokens(ask_grpc(server, grpc_message(MODEL, short(50))))) == 50
    assert cancelled(server) == before


def short(max_tokens):
    return question(FOREVER | {"max_tokens": max_tokens}, text_input="a", stream=True, returns=("output_ids",))
