"""The generation client over both protocols, against servers made here that speak just enough of Triton's language."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from fastserve.tools.client import GenerateRequest, GenerateResponse, RequestFailed, ServerUnreachable, connect
from tests.local_servers import LocalHttpServer, started

Inputs = dict[str, list[Any]]
Script = Callable[[str, Inputs], Iterator[Mapping[str, Sequence[Any]]]]


class ScriptError(Exception):
    """A script raises this to answer with an error of the model."""


CODES = {"INVALID_ARG": grpc.StatusCode.INVALID_ARGUMENT, "UNAVAILABLE": grpc.StatusCode.UNAVAILABLE}
REFUSED = 400
"""What Triton answers over HTTP whatever the model's error is."""


def echo(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
    """One response a word of the prompt; the last one says why it ended."""
    words = inputs["text_input"][0].split()
    for index, word in enumerate(words):
        last = index == len(words) - 1
        yield {
            "text_output": [word],
            "finish_reason": ["stop" if last else "None"],
            "num_output_tokens": [1],
            "num_input_tokens": [7],
        }


class GrpcServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script
        self.shapes: list[list[int]] = []
        self.cancelled = threading.Event()
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.url = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        context.add_callback(lambda: None if context.is_active() else self.cancelled.set())
        for request in requests:
            inputs = {}
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
                self.shapes.append(list(tensor.shape))
                inputs[tensor.name] = decode(tensor.datatype, raw)
            if request.model_name == "unknown":
                yield service_pb2.ModelStreamInferResponse(error_message="Request for unknown model: 'unknown' is not found")
                return
            try:
                for outputs in self.script(request.model_name, inputs):
                    yield response(outputs)
            except ScriptError as error:
                context.abort(CODES[error.args[0]], error.args[1])
            yield service_pb2.ModelStreamInferResponse(infer_response=service_pb2.ModelInferResponse(model_name="final"))

    def close(self) -> None:
        self.server.stop(None).wait()


def decode(datatype: str, raw: bytes) -> list[Any]:
    if datatype == "BYTES":
        return [item.decode() for item in deserialize_bytes_tensor(raw)]
    return list(np.frombuffer(raw, triton_to_np_dtype(datatype)).tolist())


def response(outputs: Mapping[str, Sequence[Any]]) -> Any:
    message = service_pb2.ModelInferResponse()
    for name, values in outputs.items():
        kind = "BYTES" if isinstance(values[0], str) else "UINT32"
        message.outputs.add(name=name, datatype=kind, shape=[len(values)])
        if kind == "BYTES":
            raw = b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in values)
        else:
            raw = np.asarray(values, np.uint32).tobytes()
        message.raw_output_contents.append(raw)
    return service_pb2.ModelStreamInferResponse(infer_response=message)


class HttpServer(LocalHttpServer):
    def __init__(self, script: Script) -> None:
        self.cancelled = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                _, _, _, model, method = self.path.split("/")
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                inputs = {name: value if isinstance(value, list) else [value] for name, value in body.items()}
                if model == "unknown":
                    self.start(404, "application/json", {"error": "Request for unknown model: 'unknown' is not found"})
                    return
                kind = "text/event-stream; charset=utf-8" if method == "generate_stream" else "application/json"
                prefix = "data: " if method == "generate_stream" else ""
                started = False
                try:
                    for outputs in script(model, inputs):
                        if not started:
                            self.start(200, kind)
                            started = True
                        flat = {name: values[0] if len(values) == 1 else values for name, values in outputs.items()}
                        self.wfile.write(f"{prefix}{json.dumps({'model_name': model, **flat})}\n\n".encode())
                except ScriptError as error:
                    if not started:
                        self.start(REFUSED, kind)
                    self.wfile.write(f"{prefix}{json.dumps({'error': error.args[1]})}\n\n".encode())
                except OSError:
                    outer.cancelled.set()

            def start(self, status: int, kind: str, body: object = None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                if body is not None:
                    self.wfile.write(json.dumps(body).encode())

        super().__init__(Handler)


Serve = Callable[[Script], Any]


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpc", "http"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    yield from started(request.param)


def test_a_stream_gives_each_delta_with_its_counts_and_the_reason_of_the_end(serve: Serve) -> None:
    with connect(serve(echo).url) as client, client.stream(GenerateRequest("m", text="drei größere Wörter")) as stream:
        answers = list(stream)
    assert [answer.text for answer in answers] == ["drei", "größere", "Wörter"]
    assert [answer.finish_reason for answer in answers] == [None, None, "stop"]
    assert [answer.num_output_tokens for answer in answers] == [1, 1, 1]
    assert answers[0].num_input_tokens == 7
    assert answers[0].arrival <= answers[1].arrival <= answers[2].arrival


def test_what_was_asked_arrives_under_the_names_of_the_contract(serve: Serve) -> None:
    seen: list[Inputs] = []

    def remember(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
        seen.append(inputs)
        yield {"text_output": ["a", "b"], "output_ids": [4, 5, 6]}

    request = GenerateRequest(
        "m",
        messages=[{"role": "user", "content": "hi"}],
        input_ids=[3, 1, 2],
        parameters={"top_k": 5, "stop": ["\n"]},
        stream=False,
        exclude_input_in_output=True,
        returns=("output_ids",),
    )
    with connect(serve(remember).url) as client:
        (answer,) = client.stream(request)
    parameters = json.loads(seen[0].pop("sampling_parameters")[0])
    assert parameters == {"top_k": 5, "stop": ["\n"], "messages": [{"role": "user", "content": "hi"}]}
    assert seen == [{"input_ids": [3, 1, 2], "stream": [False], "exclude_input_in_output": [True], "return_output_ids": [True]}]
    assert (answer.texts, answer.output_ids) == (("a", "b"), (4, 5, 6))


def test_an_error_before_the_first_token_has_its_message_and_its_status_where_the_protocol_has_one(serve: Serve) -> None:
    def refuse(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
        raise ScriptError("UNAVAILABLE", "the queue is full")
        yield {}

    server = serve(refuse)
    with connect(server.url) as client, pytest.raises(RequestFailed) as caught:
        list(client.stream(GenerateRequest("m", text="x")))
    status = "UNKNOWN" if isinstance(server, HttpServer) else "UNAVAILABLE"
    assert (caught.value.status, caught.value.message) == (status, "the queue is full")


def test_an_error_after_some_tokens_keeps_the_tokens_and_then_raises(serve: Serve) -> None:
    def break_off(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
        yield {"text_output": ["half"]}
        raise ScriptError("INVALID_ARG", "broke off")

    with connect(serve(break_off).url) as client, client.stream(GenerateRequest("m", text="x")) as stream:
        assert next(stream).text == "half"
        with pytest.raises(RequestFailed, match="broke off") as caught:
            next(stream)
    assert caught.value.status in ("INVALID_ARG", "UNKNOWN")


def test_a_model_nobody_serves_is_not_found(serve: Serve) -> None:
    with connect(serve(echo).url) as client, pytest.raises(RequestFailed, match="unknown model") as caught:
        list(client.stream(GenerateRequest("unknown", text="x")))
    assert caught.value.status == "NOT_FOUND"


def test_closing_a_stream_cancels_the_request_on_the_server(serve: Serve) -> None:
    stopped = threading.Event()

    def endless(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
        while not stopped.is_set():
            yield {"text_output": ["on"]}

    server = serve(endless)
    with connect(server.url) as client:
        with client.stream(GenerateRequest("m", text="x")) as stream:
            assert next(stream).text == "on"
        assert server.cancelled.wait(20)
        assert list(stream) == []
    stopped.set()


def test_another_thread_may_close_a_stream_that_waits(serve: Serve) -> None:
    waiting, release = threading.Event(), threading.Event()

    def stall(model: str, inputs: Inputs) -> Iterator[Mapping[str, Sequence[Any]]]:
        yield {"text_output": ["one"]}
        waiting.set()
        release.wait(30)

    with connect(serve(stall).url) as client, client.stream(GenerateRequest("m", text="x")) as stream:
        assert next(stream).text == "one"

        def close_when_waiting() -> None:
            waiting.wait(20)
            stream.close()

        closer = threading.Thread(target=close_when_waiting)
        closer.start()
        assert list(stream) == []
        closer.join()
        release.set()


def test_many_requests_at_once_do_not_mix(serve: Serve) -> None:
    with connect(serve(echo).url) as client, futures.ThreadPoolExecutor(16) as pool:

        def ask(index: int) -> str:
            return " ".join(answer.text for answer in client.stream(GenerateRequest("m", text=f"{index} a {index} b {index}")))

        answers = list(pool.map(ask, range(200)))
    assert answers == [f"{index} a {index} b {index}" for index in range(200)]


@pytest.mark.parametrize("scheme", ["", "grpc://", "http://"])
def test_a_server_that_is_not_there_is_unreachable_and_the_message_says_what_to_do(scheme: str) -> None:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        url = f"{scheme}127.0.0.1:{reserved.getsockname()[1]}"
        with connect(url) as client, pytest.raises(ServerUnreachable, match="fastserve serve"):
            list(client.stream(GenerateRequest("m", text="x")))


def test_several_answers_have_ended_when_the_last_one_has() -> None:
    def response(*reasons: str) -> GenerateResponse:
        return GenerateResponse({"finish_reason": reasons}, 0.0)

    assert response("stop", "None").finish_reason is None
    assert response("stop", "None").finish_reasons == ("stop", None)
    assert response("stop", "length").finish_reason == "stop"
    assert (response().finish_reason, response().finish_reasons) == (None, ())


def test_a_model_with_a_batch_dimension_gets_a_leading_one_over_grpc() -> None:
    server = GrpcServer(echo)
    with connect(server.url) as client:
        list(client.stream(GenerateRequest("m", text="x", input_ids=[1, 2, 3], batch_dimension=True, returns=())))
    server.close()
    assert server.shapes == [[1, 1], [1, 3], [1, 1]]
