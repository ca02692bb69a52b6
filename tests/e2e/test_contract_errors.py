"""Every error of the contract: what it says over both protocols, and that the request beside it notices nothing."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tests.e2e.metrics_page import PATIENCE_S, read_metric, wait_until
from tests.e2e.test_contract_wire import (
    Refused,
    ask_grpc,
    bytes_tensor,
    grpc_message,
    open_channel,
    post,
    question,
    rows_of,
    split_code,
    start_call,
)

TEXT = {"text_input": "hello"}
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 10_000}
NEIGHBOUR_TOKENS, POOL_TOKENS = 700, 300
PROMPT_NEEDED = "text_input: got '', allowed: a prompt that is not empty (or input_ids, or messages)"
NOT_AN_OBJECT = 'allowed: a JSON object such as {"max_tokens": 100}'


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A request that is refused. ``message``: all that is said, or its parts. ``tensors``: raw gRPC inputs (then there is no
    way to say it in JSON). ``status``: of HTTP; Triton 2.51 answers 400 to whatever the model refuses, also where its own
    table says 501 (UNSUPPORTED), 503 (UNAVAILABLE) or 500 (INTERNAL)."""

    inputs: dict
    message: str | tuple[str, ...]
    tensors: dict | None = None
    model: str = "llama-long"
    status: int = 400


def ids(values, shape, datatype="INT64"):
    return datatype, shape, np.array(values, datatype.lower()).tobytes()


WRONG = {
    "nothing given": Wrong({}, PROMPT_NEEDED),
    "nothing but parameters": Wrong(question(LONG), PROMPT_NEEDED),
    "empty text": Wrong({"text_input": ""}, PROMPT_NEEDED),
    "empty ids": Wrong({"input_ids": []}, "input_ids: got [], allowed: at least one token"),
    "text and ids": Wrong(TEXT | {"input_ids": [5]}, ("input_ids: got 'together with text_input'", "not both")),
    "messages and text": Wrong(
        question({"messages": [{"role": "user", "content": "x"}]}, **TEXT),
        ("messages: got 'together with text_input'", "not both"),
    ),
    "messages and ids": Wrong(
        question({"messages": [{"role": "user", "content": "x"}]}, input_ids=[5]), ("input_ids: got 'together with messages'",)
    ),
    "text that is not UTF-8": Wrong(
        {},
        "text_input: got b'ab\\xff', allowed: valid UTF-8 (byte 2 is not)",
        tensors={"text_input": ("BYTES", [1], bytes_tensor(b"ab\xff"))},
    ),
    "parameters that are not UTF-8": Wrong(
        TEXT,
        ("sampling_parameters: got b", "allowed: valid UTF-8 (byte 0 is not)"),
        tensors={"sampling_parameters": ("BYTES", [1], bytes_tensor(b"\xff{}"))},
    ),
    "bad JSON": Wrong(TEXT | {"sampling_parameters": "{'n': 1}"}, ("sampling_parameters: got ", NOT_AN_OBJECT)),
    "empty JSON": Wrong(TEXT | {"sampling_parameters": ""}, ("sampling_parameters: got ''", NOT_AN_OBJECT)),
    "a JSON list": Wrong(TEXT | {"sampling_parameters": "[1]"}, ("sampling_parameters: got '[1]'", NOT_AN_OBJECT)),
    "a JSON number": Wrong(TEXT | {"sampling_parameters": "7"}, ("sampling_parameters: got '7'", NOT_AN_OBJECT)),
    "JSON without end": Wrong(TEXT | {"sampling_parameters": "[" * 100_000}, ("sampling_parameters: got '[[[", NOT_AN_OBJECT)),
    "half a surrogate pair": Wrong(
        TEXT | {"sampling_parameters": '{"stop": "\\ud800"}'}, ("sampling_parameters: ", NOT_AN_OBJECT)
    ),
    "id too large": Wrong({"input_ids": [5, 269]}, "input_ids: got 269, allowed: token ids from 0 to 268"),
    "id negative": Wrong({"input_ids": [-1]}, "input_ids: got -1, allowed: token ids from 0 to 268"),
    "id of 63 bits": Wrong({"input_ids": [2**63 - 1]}, f"input_ids: got {2**63 - 1}, allowed: token ids from 0 to 268"),
    "prompt too long for the model": Wrong(
        {"input_ids": [5] * 16384}, "prompt: got '16384 tokens', allowed: at most 16383 (the model's limit is 16384 with output)"
    ),
    "too long for the pool": Wrong(
        question({"max_tokens": 385}, input_ids=[5]),
        "prompt + max_tokens: got '386 tokens (25 KV blocks)', allowed: what the KV pool can hold, 384 tokens (24 blocks); "
        "lower max_tokens or raise kv_cache_bytes",
        model="llama-tiny-pool",
    ),
    "echo of a stream": Wrong(TEXT | {"stream": True, "exclude_input_in_output": False}, ("exclude_input_in_output: got False",)),
    "tools alone": Wrong(question({"tools": [{"a": 1}]}, **TEXT), ("tools: got [{'a': 1}]", "messages beside them")),
    "blank bad word": Wrong(question({"bad_words": " "}, **TEXT), ("bad_words: got ' '", "tokenizer has tokens for")),
    "unsupported parameter": Wrong(
        question({"priority": 1}, **TEXT), "priority: got 1; it needs policy priority in the model's config.pbtxt"
    ),
    "stream of beams": Wrong(
        question({"num_beams": 2}, stream=True, **TEXT), ("num_beams: got 2, allowed: 1 when stream is true",)
    ),
    "best_of below n": Wrong(question({"n": 3, "best_of": 2}, **TEXT), "best_of: got 2, allowed: at least n (3)"),
    "greedy answers": Wrong(question({"n": 2, "temperature": 0}, **TEXT), ("n: got 2, allowed: 1 when temperature is 0",)),
    "best of a stream": Wrong(
        question({"n": 2, "best_of": 3}, stream=True, **TEXT), ("best_of: got 3, allowed: n (2) when stream is true",)
    ),
    "unknown parameter": Wrong(question({"max_tokns": 2}, **TEXT), ("max_tokns: got 2", "allowed: a known sampling parameter")),
    "value out of range": Wrong(question({"top_p": 2}, **TEXT), "top_p: got 2, allowed: a number above 0, at most 1"),
    "deadline passed": Wrong(
        question(LONG | {"deadline_ms": 40}, **TEXT), "the deadline (deadline_ms) passed before the request finished"
    ),
    "deadline passed of several answers": Wrong(
        question(LONG | {"deadline_ms": 60, "n": 3, "temperature": 1}, **TEXT),
        "the deadline (deadline_ms) passed before the request finished",
    ),
    "deadline passed in a prefill": Wrong(
        question({"deadline_ms": 1, "max_tokens": 1}, input_ids=[5] * 16000),
        "the deadline (deadline_ms) passed before the request finished",
    ),
    "no token left": Wrong(
        question({"stop_token_ids": list(range(269)), "min_tokens": 4}, **TEXT),
        ("min_tokens: got 4, allowed: ", "stop_token_ids"),
    ),
    "unknown model": Wrong(TEXT, "Request for unknown model: 'nobody' is not found", model="nobody", status=404),
    "unknown input": Wrong(TEXT, ("unexpected inference input 'nonsense'",), tensors={"nonsense": ("BOOL", [1], b"\1")}),
    "wrong type of stream": Wrong(TEXT, ("'stream'", "expects 'BOOL'"), tensors={"stream": ids([1], [1])}),
    "wrong type of text_input": Wrong({}, ("'text_input'", "expects 'BYTES'"), tensors={"text_input": ids([1], [1])}),
    "wrong type of input_ids": Wrong({}, ("'input_ids'", "expects 'INT64'"), tensors={"input_ids": ids([1], [1], "INT32")}),
    "wrong shape of text_input": Wrong(
        {}, ("'text_input'", "Expected [1], got [2]"), tensors={"text_input": ("BYTES", [2], bytes_tensor(b"a", b"b"))}
    ),
    "wrong shape of input_ids": Wrong(
        {}, ("'input_ids'", "Expected [-1], got [2,2]"), tensors={"input_ids": ids([1] * 4, [2, 2])}
    ),
    "batch dimension": Wrong({}, ("'text_input'", "got [1,1]"), tensors={"text_input": ("BYTES", [1, 1], bytes_tensor(b"a"))}),
    "string cut short": Wrong({}, ("'text_input'",), tensors={"text_input": ("BYTES", [1], b"\x10\0\0\0ab")}),
}
EVERY_WRONG = [pytest.param(wrong, id=name) for name, wrong in WRONG.items()]
IN_JSON = [pytest.param(wrong, id=name) for name, wrong in WRONG.items() if wrong.tensors is None]
MALFORMED_JSON = {
    "not JSON": (b"{not json", 500, "failed to parse the request JSON buffer"),
    "not an object": (b"[]", 500, "non-object"),
    "a number as text": (b'{"text_input": 5}', 500, "non-string as string"),
    "a word as truth": (b'{"text_input": "a", "stream": "yes"}', 500, "non-boolean as boolean"),
    "a fraction as id": (b'{"input_ids": [1.5]}', 500, "non-signed-integer"),
    "an object as parameters": (b'{"text_input": "a", "sampling_parameters": {}}', 500, "non-string as string"),
    "two texts": (b'{"text_input": ["a", "b"]}', 400, "'text_input'"),
    "an unknown key": (b'{"text_input": "a", "nonsense": 1}', 400, "nonsense: got 1"),
    "bad UTF-8": (b'{"text_input": "a\xff"}', 400, "text_input: got b'a\\xff', allowed: valid UTF-8 (byte 1 is not)"),
}


def assert_says(message, wrong):
    if isinstance(wrong.message, str):
        assert split_code(message)[1] == wrong.message
    else:
        assert all(part in message for part in wrong.message), message


def refuse(server, wrong):
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message(wrong.model, wrong.inputs, tensors=wrong.tensors))
    assert_says(caught.value.message, wrong)


class Neighbour:
    """A stream that is read in its own thread while something else happens."""

    def __init__(self, server, model, tokens=NEIGHBOUR_TOKENS, most=15_000):
        """``most``: tokens that it may be given when ``tokens`` turn out to be too few."""
        self._server, self._model, self.tokens, self._most = server, model, tokens, most
        self.is_running, self.ended_at, self.ids, self.text = threading.Event(), 0.0, [], ""

    def run(self):
        self.ids, self.text = [], ""
        parameters = {"max_tokens": self.tokens, "ignore_eos": True, "seed": 3}
        message = grpc_message(self._model, question(parameters, text_input="one two", stream=True, returns=("output_ids",)))
        with open_channel(self._server) as channel:
            for row in rows_of(start_call(channel, message)):
                self.ids += row.values["output_ids"]
                self.text += row.values["text_output"][0]
                if len(self.ids) >= 20:
                    self.is_running.set()
        self.ended_at = time.monotonic()
        return self

    def run_beside(self, action: Callable[[], object], attempts=12):
        """Do ``action`` in the middle of the stream; again, beside a longer one, if that ended before it was done."""
        for _ in range(attempts):
            self.is_running = threading.Event()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                future = pool.submit(self.run)
                assert self.is_running.wait(PATIENCE_S)
                action()
                done_at = time.monotonic()
                future.result()
            if done_at < self.ended_at:
                return self
            self.tokens = min(2 * self.tokens, self._most)
        raise AssertionError(f"the neighbour was always over too early, with {self.tokens} tokens too")


@pytest.fixture(scope="module")
def alone(server):
    """What the neighbour of a model gets when nobody else asks, by the model and its number of tokens: (ids, text)."""

    @functools.cache
    def run(model, tokens):
        neighbour = Neighbour(server, model, tokens).run()
        return neighbour.ids, neighbour.text

    return run


@pytest.mark.parametrize("wrong", EVERY_WRONG)
def test_an_error_says_what_is_wrong_and_leaves_its_neighbour_untouched(server, alone, wrong):
    model, tokens, most = "llama-long", NEIGHBOUR_TOKENS, 15_000
    if wrong.model == "llama-tiny-pool":
        model, tokens, most = wrong.model, POOL_TOKENS, POOL_TOKENS
    neighbour = Neighbour(server, model, tokens, most).run_beside(lambda: refuse(server, wrong))
    assert (neighbour.ids, neighbour.text) == alone(model, neighbour.tokens)


@pytest.mark.parametrize("wrong", IN_JSON)
@pytest.mark.parametrize("method", ["generate", "generate_stream"])
def test_http_answers_with_a_status_and_the_same_message(server, wrong, method):
    answer = post(server, wrong.model, wrong.inputs, method)
    assert answer.status_code == wrong.status
    assert_says(json.loads(answer.text.removeprefix("data:"))["error"], wrong)


@pytest.mark.parametrize(("body", "status", "part"), MALFORMED_JSON.values(), ids=MALFORMED_JSON)
def test_what_triton_cannot_read_over_http_is_refused(server, alone, body, status, part):
    def refuse_it():
        answer = post(server, "llama-long", body)
        assert answer.status_code == status and part in answer.json()["error"]

    neighbour = Neighbour(server, "llama-long")
    neighbour.run_beside(refuse_it)
    assert (neighbour.ids, neighbour.text) == alone("llama-long", neighbour.tokens)


def test_a_full_queue_refuses_at_once_and_those_in_it_are_untouched(server):
    model, full = "llama-small-queue", "the queue is full: 3 requests, max_queue_size is 3; try again later"

    def long_answer():
        (row,) = ask_grpc(server, grpc_message(model, question(LONG, returns=("output_ids",), **TEXT)))
        return row.values["output_ids"]

    alone = long_answer()
    with open_channel(server) as channel, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(long_answer)
        waiting = [start_call(channel, grpc_message(model, question(LONG, **TEXT))) for _ in range(2)]
        wait_until(lambda: read_metric(server, "vllm:num_requests_waiting", model) == 2)
        with pytest.raises(Refused) as caught:
            ask_grpc(server, grpc_message(model, TEXT))
        assert caught.value.message == full
        for method in ("generate", "generate_stream"):
            answer = post(server, model, TEXT, method)
            assert answer.status_code == 400 and full in answer.text
        for call in waiting:
            call.cancel()
        assert running.result() == alone
    wait_until(lambda: read_metric(server, "fastserve:kv_blocks_used", model) == 0)
    assert ask_grpc(server, grpc_message(model, TEXT))


def test_a_request_that_just_fits_the_pool_is_served(server):
    inputs = question({"max_tokens": 384, "ignore_eos": True}, input_ids=[5], returns=("num_output_tokens",))
    (row,) = ask_grpc(server, grpc_message("llama-tiny-pool", inputs))
    assert row.values["num_output_tokens"] == [384]


def test_a_prompt_that_just_fits_the_model_gets_one_token(server):
    inputs = question({"max_tokens": 99, "ignore_eos": True}, input_ids=[5] * 255, returns=("num_output_tokens",))
    (row,) = ask_grpc(server, grpc_message("llama", inputs))
    assert row.values["num_output_tokens"] == [1]
