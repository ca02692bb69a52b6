"""A Python function behind a real Triton: batches, order, errors, parallel workers, and endings that leave nobody waiting."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from fastserve import FastServeServer
from fastserve.tools.client import RequestFailed
from tests.e2e.metrics_page import wait_until

FREE = {"port": 0}
WAIT_S = 60


class Recorder:
    """A function that remembers its batches and answers with what it was given."""

    def __init__(self):
        self.batches = []
        self.models = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, model, texts, parameters):
        self.models.append(model)
        self.batches.append(list(texts))
        assert self.may_answer.wait(WAIT_S)
        if "fail" in texts:
            raise LookupError("the label is unknown")
        return [{"text": text, "parameters": parameters} for text in texts]


class Blocker:
    """A function whose calls return when the test lets them."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.seen = []
        self._let = threading.Semaphore(0)

    def __call__(self, model, texts):
        self.seen += texts
        self.entered.release()
        assert self._let.acquire(timeout=WAIT_S)
        return texts

    def await_call(self):
        assert self.entered.acquire(timeout=WAIT_S)

    def let(self, times=1):
        self._let.release(times)


def in_background(function, *arguments):
    """A future of ``function(*arguments)``."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


def await_waiting(server, count):
    """Until ``count`` calls wait in this process for a worker."""
    wait_until(lambda: len(server._resources.host._queue) == count, WAIT_S)


def grpc_client(server):
    return triton.InferenceServerClient(server.grpc_url)


def rows(*texts):
    tensor = triton.InferInput("text_input", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object))
    return [tensor]


@pytest.fixture(scope="module")
def recorder():
    return Recorder()


@pytest.fixture(scope="module")
def server(recorder):
    model = object()
    with FastServeServer(model, recorder, {"batch_size": 4, "num_workers": 2, "name": "recorder", **FREE}) as server:
        recorder.expected_model = model
        yield server


def test_a_function_gets_its_model_and_answers_one_text_or_many_in_order(server, recorder):
    assert server.infer("Grüße") == {"text": "Grüße", "parameters": {}}
    texts = [f"text {index}" for index in range(200)]
    assert [answer["text"] for answer in server.infer(texts)] == texts
    assert all(model is recorder.expected_model for model in recorder.models)


def test_requests_that_come_together_are_batched_and_no_batch_is_too_large(server, recorder):
    recorder.batches.clear()
    recorder.may_answer.clear()
    asked = in_background(server.infer, [str(index) for index in range(200)])
    try:
        wait_until(lambda: len(server._resources.host._queue) >= 4, WAIT_S)
    finally:
        recorder.may_answer.set()
    assert len(asked.result(WAIT_S)) == 200
    sizes = [len(batch) for batch in recorder.batches]
    assert sum(sizes) == 200
    assert max(sizes) == 4


def test_the_rows_of_one_request_stay_together_and_come_back_in_order(server, recorder):
    recorder.batches.clear()
    with grpc_client(server) as client:
        result = client.infer("recorder", rows("a", "b", "c")).as_numpy("result")
        assert [json.loads(row[0])["text"] for row in result] == ["a", "b", "c"]
        assert result.shape == (3, 1)
        with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
            client.infer("recorder", rows(*"abcde"))
    assert recorder.batches == [["a", "b", "c"]]


def test_request_parameters_reach_the_function_and_only_equal_ones_share_a_batch(server, recorder):
    recorder.batches.clear()
    assert server.infer("a", k=3, kind="x", labels=["y"])["parameters"] == {"k": 3, "kind": "x", "labels": '["y"]'}
    with ThreadPoolExecutor(2) as pool:
        ones, twos = pool.map(lambda k: server.infer([f"{k}"] * 40, k=k), (1, 2))
    assert {answer["parameters"]["k"] for answer in ones} == {1} and {answer["parameters"]["k"] for answer in twos} == {2}
    assert all(len(set(batch)) == 1 for batch in recorder.batches)


def test_any_client_of_triton_can_ask(server):
    body = {"text_input": "hello", "k": 1}
    answer = httpx.post(f"{server.http_url}/v2/models/recorder/generate", json=body, trust_env=False).json()
    assert json.loads(answer["result"]) == {"text": "hello", "parameters": {"k": 1}}


def test_an_exception_fails_its_batch_by_name_and_later_requests_are_answered(server, capfd):
    with pytest.raises(RequestFailed) as caught:
        server.infer("fail")
    assert str(caught.value) == "INTERNAL: the function Recorder raised LookupError: the label is unknown"
    with grpc_client(server) as client, pytest.raises(InferenceServerException, match="LookupError"):
        client.infer("recorder", rows("a", "fail"))
    assert server.infer("fine")["text"] == "fine"


@pytest.mark.parametrize(("deadline", "words"), [("soon", "deadline_ms: got 'soon'"), (-5, "deadline_ms: got -5")])
def test_a_mistake_in_a_request_is_told_by_name(server, deadline, words):
    with pytest.raises(RequestFailed, match=words) as caught:
        server.infer("a", deadline_ms=deadline)
    assert caught.value.status == "INVALID_ARG"


def test_a_slow_function_runs_on_all_workers_at_once():
    together = threading.Barrier(3, timeout=WAIT_S)

    def function(model, texts):
        together.wait()
        return texts

    with FastServeServer([], function, {"batch_size": 1, "num_workers": 3, "name": "slow", **FREE}) as server:
        assert server.infer(["a", "b", "c"] * 4) == ["a", "b", "c"] * 4


def test_deadlines_cancellations_and_the_bound_spare_the_function_what_nobody_waits_for():
    blocker = Blocker()
    config = {"batch_size": 1, "name": "m", "parameters": {"max_queue_size": 4}, **FREE}
    with FastServeServer([], blocker, config) as server, grpc_client(server) as client:
        running = in_background(server.infer, "running")
        blocker.await_call()
        with pytest.raises(RequestFailed, match="deadline") as caught:
            server.infer("late", deadline_ms=100)
        assert caught.value.status == "UNAVAILABLE"
        outcomes = []
        cancelled = client.async_infer("m", rows("cancelled"), lambda result, error: outcomes.append(error))
        kept = in_background(server.infer, "kept")
        await_waiting(server, 2)
        cancelled.cancel()
        await_waiting(server, 1)
        assert "CANCELLED" in str(outcomes[0])
        waiting = [in_background(server.infer, f"waiting {index}") for index in range(2)]
        await_waiting(server, 3)
        with pytest.raises(RequestFailed, match="the queue is full: 4 requests, max_queue_size is 4") as caught:
            server.infer("too many")
        assert caught.value.status == "UNAVAILABLE"
        blocker.let(4)
        assert [future.result(WAIT_S) for future in (running, kept, *waiting)] == ["running", "kept", "waiting 0", "waiting 1"]
        await_waiting(server, 0)
    assert sorted(blocker.seen) == ["kept", "running", "waiting 0", "waiting 1"]
