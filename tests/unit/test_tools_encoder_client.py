"""The encoder client over both protocols, against servers made here that speak just enough of Triton's language."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from fastserve.errors import InvalidRequest, ToolError
from fastserve.tools.client import RequestFailed, ServerUnreachable
from fastserve.tools.encoder_client import EncoderRequest, connect_encoder, result_of, task_of
from tests.local_servers import LocalHttpServer, started

KINDS = {"score": "FP32", "start": "INT32"}
ANSWER: dict[str, list[Any]] = {
    "label": ["Grüße", ""],
    "score": [0.25, 0.5],
    "start": [3, -1],
    "result": ['[{"label": "Grüße"}]'],
}


Inputs = dict[str, tuple[str, list[int], list[Any]]]
"""By name: data type, shape, elements."""


class Refused(Exception):
    """Raised by a script: the model's error message."""


class Seen:
    """What the server got last. ``script``: from the inputs to the outputs; may raise :class:`Refused`."""

    def __init__(self, script: Callable[[Inputs], Mapping[str, list[Any]]] = lambda inputs: ANSWER) -> None:
        self.script = script
        self.inputs: Inputs = {}
        self.parameters: dict[str, Any] = {}
        self.model = ""


class GrpcServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.url = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen.model = request.model_name
        inputs: Inputs = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            if tensor.datatype == "BYTES":
                values = [item.decode() for item in deserialize_bytes_tensor(raw)]
            else:
                values = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).tolist()
            inputs[tensor.name] = (tensor.datatype, list(tensor.shape), values)
        for name, value in request.parameters.items():
            self.seen.parameters[name] = getattr(value, value.WhichOneof("parameter_choice"))
        try:
            self.seen.inputs = inputs
            outputs = self.seen.script(inputs)
        except Refused as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = service_pb2.ModelInferResponse()
        for name, values in outputs.items():
            kind = KINDS.get(name, "BYTES")
            response.outputs.add(name=name, datatype=kind, shape=[1, len(values)])
            if kind == "BYTES":
                raw = b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in values)
            else:
                raw = np.asarray(values, triton_to_np_dtype(kind)).tobytes()
            response.raw_output_contents.append(raw)
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == "unknown":
            context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'unknown' is not found")
        response = service_pb2.ModelConfigResponse()
        if request.name == "ner":
            response.config.parameters["task"].string_value = "token-classification"
        return response

    def close(self) -> None:
        self.server.stop(None).wait()


class HttpServer(LocalHttpServer):
    def __init__(self, seen: Seen) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.model = self.path.split("/")[3]
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                seen.inputs = inputs = {item["name"]: (item["datatype"], item["shape"], item["data"]) for item in body["inputs"]}
                seen.parameters = body["parameters"]
                try:
                    outputs = seen.script(inputs)
                except Refused as error:
                    self.reply(400, {"error": str(error)})
                    return
                listed = [
                    {"name": name, "datatype": KINDS.get(name, "BYTES"), "shape": [1, len(values)], "data": values}
                    for name, values in outputs.items()
                ]
                self.reply(200, {"model_name": seen.model, "outputs": listed})

            def do_GET(self) -> None:
                model = self.path.split("/")[3]
                if model == "unknown":
                    self.reply(404, {"error": "Request for unknown model: 'unknown' is not found"})
                    return
                parameters = {"parameters": {"task": {"string_value": "token-classification"}}} if model == "ner" else {}
                self.reply(200, {"name": model, **parameters})

            def reply(self, status: int, body: object) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

        super().__init__(Handler)


Serve = Callable[[Seen], Any]


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpc", "http"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    yield from started(request.param)


def test_what_is_asked_arrives_as_one_row_with_typed_parameters(serve: Serve) -> None:
    seen = Seen()
    request = EncoderRequest(
        {"text_input": "Ada liebt Bücher"},
        spans={"head": (0, 3), "tail": (10, 16)},
        candidate_labels=("a", "ü"),
        parameters={"top_k": 3, "multi_label": True, "threshold": 0.1, "ignore_labels": '["O"]'},
    )
    with connect_encoder(serve(seen).url) as client:
        client.infer("my-model", request)
    assert seen.model == "my-model"
    assert seen.inputs == {
        "text_input": ("BYTES", [1, 1], ["Ada liebt Bücher"]),
        "head": ("INT32", [1, 2], [0, 3]),
        "tail": ("INT32", [1, 2], [10, 16]),
        "candidate_labels": ("BYTES", [1, 2], ["a", "ü"]),
    }
    assert seen.parameters == {"top_k": 3, "multi_label": True, "threshold": "0.1", "ignore_labels": '["O"]'}
    assert seen.parameters["multi_label"] is True


def test_outputs_are_flat_lists_of_python_values(serve: Serve) -> None:
    with connect_encoder(serve(Seen()).url) as client:
        outputs = client.infer("m", EncoderRequest({"text_input": "x"}))
    assert dict(outputs) == ANSWER
    assert type(outputs["score"][0]) is float and type(outputs["start"][0]) is int
    assert result_of(outputs) == [{"label": "Grüße"}]


def test_an_error_of_the_model_has_its_kind_and_message(serve: Serve) -> None:
    def refuse(inputs: Inputs) -> Mapping[str, list[Any]]:
        raise Refused("INVALID_ARG: top_k: got 0, allowed: a whole number, at least 1")

    with connect_encoder(serve(Seen(refuse)).url) as client, pytest.raises(RequestFailed) as caught:
        client.infer("m", EncoderRequest({"text_input": "x"}))
    assert str(caught.value) == "INVALID_ARG: top_k: got 0, allowed: a whole number, at least 1"
    assert caught.value.status == "INVALID_ARG"


def test_the_task_is_in_the_models_configuration_and_generation_where_it_is_not(serve: Serve) -> None:
    with connect_encoder(serve(Seen()).url) as client:
        assert (task_of(client, "ner"), task_of(client, "llama")) == ("token-classification", "text-generation")
        with pytest.raises(RequestFailed, match="unknown model") as caught:
            task_of(client, "unknown")
    assert caught.value.status == "NOT_FOUND"


def test_many_requests_at_once_do_not_mix(serve: Serve) -> None:
    def echo(inputs: Inputs) -> Mapping[str, list[Any]]:
        return {"label": inputs["text_input"][2]}

    with connect_encoder(serve(Seen(echo)).url) as client, futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda index: client.infer("m", EncoderRequest({"text_input": str(index)})), range(100)))
    assert answers == [{"label": [str(index)]} for index in range(100)]


def test_a_closed_client_says_so(serve: Serve) -> None:
    client = connect_encoder(serve(Seen()).url)
    client.close()
    with pytest.raises(ToolError, match="this client is closed"):
        client.infer("m", EncoderRequest({"text_input": "x"}))


@pytest.mark.parametrize("scheme", ["", "grpc://", "http://"])
def test_a_server_that_is_not_there_is_unreachable(scheme: str) -> None:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        url = f"{scheme}127.0.0.1:{reserved.getsockname()[1]}"
        with connect_encoder(url) as client, pytest.raises(ServerUnreachable, match="fastserve serve"):
            task_of(client, "m")


def test_another_protocol_is_refused() -> None:
    with pytest.raises(ToolError, match="ftp:// is no protocol of Triton"):
        connect_encoder("ftp://host")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (EncoderRequest({"text_input": "\udcff"}), "text_input"),
        (EncoderRequest({"text_input": "x"}, candidate_labels=("\udcff",)), "candidate_labels"),
        (EncoderRequest({"text_input": "x"}, parameters={"top_k": 2**63}), "top_k"),
        (EncoderRequest({"text_input": "x"}, parameters={"label": "\udcff"}), "label"),
    ],
)
def test_what_cannot_be_sent_is_named(request_: EncoderRequest, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        (request_.tensors(), request_.wire_parameters())


def test_a_result_that_is_no_json_is_the_servers_fault() -> None:
    assert result_of({"embedding": [0.5]}) == {"embedding": [0.5]}
    with pytest.raises(RequestFailed, match=r"INTERNAL: the server's result is no JSON: \['x'\]"):
        result_of({"result": ["x"]})
