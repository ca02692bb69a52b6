"""Two thousand mixed requests against one model: each ends exactly once, and nothing is left behind."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from fastserve.tools.client import GenerateRequest, RequestFailed, connect
from tests.e2e.clients import RETURNS
from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.processes import resident_bytes, shared_memory_bytes, stub_process

MODEL = "llama-small-pool"
NUM_REQUESTS = 2000
NUM_WARM = 500
CONCURRENCY = 32
RSS_GROWTH = 1.03
VOCAB_SIZE = 260
BAD_PARAMETERS = ({"temperature": -1}, {"max_tokenss": 4}, {"top_p": "x"}, {"priority": 3}, {"max_tokens": 0}, {"stop": [""]})


def random_request(rng: random.Random) -> tuple[str, GenerateRequest]:
    """A kind ("plain", "cancel" or "bad") and a request of it."""
    kind = rng.choices(("plain", "cancel", "bad"), (75, 15, 10))[0]
    parameters = {"max_tokens": rng.randint(1, 40), "temperature": rng.choice((0, 1)), "ignore_eos": rng.random() < 0.5}
    if rng.random() < 0.1:
        parameters["deadline_ms"] = rng.choice((1, rng.randint(1, 50)))
    if rng.random() < 0.3:
        parameters["stop"] = rng.choice(("e", "th", ["\n", "zz"]))
    if parameters["temperature"] and rng.random() < 0.3:
        parameters |= {"n": rng.choice((2, 3)), "logprobs": 2, "prompt_logprobs": rng.choice((None, 1))}
    if kind == "bad":
        parameters |= rng.choice(BAD_PARAMETERS)
    prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice((1, 5, 20, 60, 150)))]
    return kind, GenerateRequest(MODEL, input_ids=prompt, parameters=parameters, stream=rng.random() < 0.7, returns=RETURNS)


def run_request(client, rng: random.Random) -> str:
    """Serve one random request to its end; how it ended. Fails when it ended twice or not at all."""
    kind, request = random_request(rng)
    endings = []
    try:
        with client.stream(request) as stream:
            for count, response in enumerate(stream):
                assert not endings, "a response came after the last one"
                if response.finish_reason:
                    endings.append(response.finish_reason)
                elif kind == "cancel" and count >= 2:
                    stream.close()
                    endings.append("cancelled by the client")
                    break
    except RequestFailed as error:
        endings.append(error.status)
    assert len(endings) == 1, f"{request} ended {endings}"
    if kind == "bad":
        assert endings[0] in ("INVALID_ARG", "UNSUPPORTED"), f"{request} ended {endings}"
    return endings[0]


def run_requests(clients, seed: int, count: int) -> Counter[str]:
    """``count`` random requests, CONCURRENCY at a time, over both protocols."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def worker(index: int) -> Counter[str]:
        endings: Counter[str] = Counter()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return endings
            endings[run_request(clients[index % len(clients)], random.Random(seed * 100_003 + number))] += 1

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return sum(pool.map(worker, range(CONCURRENCY)), Counter())


def wait_until_empty(server) -> None:
    """Cancelled requests end a moment after their client is gone."""
    wait_until(lambda: read_metric(server, "fastserve:kv_blocks_used", MODEL) == 0)
    wait_until(lambda: read_metric(server, "vllm:num_requests_waiting", MODEL) == 0)


def test_two_thousand_mixed_requests_end_once_each_and_leave_nothing_behind(server):
    endings_before = read_metric(server, "fastserve:requests_total", MODEL)
    with connect(server.grpc_url) as grpc_client, connect(server.http_url) as http_client:
        clients = (grpc_client, grpc_client, grpc_client, http_client)
        endings = run_requests(clients, 1, NUM_WARM)
        wait_until_empty(server)
        stub = stub_process(server, MODEL)
        rss, shared = resident_bytes(stub), shared_memory_bytes(server)
        endings += run_requests(clients, 2, NUM_REQUESTS - NUM_WARM)
        wait_until_empty(server)
        after = resident_bytes(stub)
    print(f"{endings}; RSS {rss / 2**20:.1f} -> {after / 2**20:.1f} MiB; /dev/shm {shared} -> {shared_memory_bytes(server)}")
    assert endings.total() == NUM_REQUESTS
    for ending in ("stop", "length", "cancelled by the client", "INVALID_ARG", "UNSUPPORTED", "UNAVAILABLE"):
        assert endings[ending] > 0, f"no request ended {ending}: {endings}"
    wait_until(lambda: read_metric(server, "fastserve:requests_total", MODEL) - endings_before == NUM_REQUESTS)
    assert read_metric(server, "fastserve:kv_blocks_free", MODEL) == 24
    assert after <= rss * RSS_GROWTH
    assert shared_memory_bytes(server) <= shared
