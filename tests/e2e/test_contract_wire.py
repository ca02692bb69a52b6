"""The contract byte by byte: what is declared, what is sent, and when. Also the raw requests that the other contract tests use:
``GenerateRequest`` cannot say anything wrong and hides types, final flags and HTTP statuses."""

from __future__ import annotations

import dataclasses
import json
import struct

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from fastserve.errors import ErrorCode
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS

WIRE_TYPES = {spec.name: spec.data_type.removeprefix("TYPE_").replace("STRING", "BYTES") for spec in TEXT_GENERATION_INPUTS}
RETURNS = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens", "output_ids")


class Refused(Exception):
    """An error over gRPC. ``status``: the gRPC code's name, None when the message came in the stream. ``code``: the name that
    our messages begin with, None for Triton's own; ``message``: the rest."""

    def __init__(self, message, status=None):
        super().__init__(f"{status}: {message}")
        self.status = status
        self.code, self.message = split_code(message)


def split_code(message):
    """A message's leading code, None when there is none, and the rest."""
    message = message.removeprefix("[request id: <id_unknown>] ")
    code, colon, rest = message.partition(": ")
    return (code, rest) if colon and code in ErrorCode.__members__ else (None, message)


@dataclasses.dataclass(frozen=True)
class Row:
    """One gRPC response: by output name the Triton data type, the shape and the values; and whether it said it is the last."""

    types: dict
    shapes: dict
    values: dict
    final: bool


def question(parameters=None, *, returns=(), **inputs):
    """The inputs of a request by name, for both protocols. ``returns``: optional outputs to ask for."""
    given = {} if parameters is None else {"sampling_parameters": json.dumps(parameters)}
    return inputs | given | {f"return_{name}": True for name in returns}


def grpc_message(model, inputs, *, tensors=None, batched=False, **parameters):
    """``tensors``: inputs as (data type, shape, bytes) for requests that are wrong; ``batched``: with a leading 1, for models
    that have a batch dimension; ``parameters``: request parameters."""
    message = service_pb2.ModelInferRequest(model_name=model)
    encoded = {name: _encode(name, value) for name, value in inputs.items()} | (tensors or {})
    for name, (datatype, shape, raw) in encoded.items():
        message.inputs.add(name=name, datatype=datatype, shape=[1, *shape] if batched else shape)
        message.raw_input_contents.append(raw)
    fields = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(message.parameters[name], fields[type(value)], value)
    return message


def bytes_tensor(*items):
    """String elements as Triton takes them: each with its length in front."""
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def _encode(name, value):
    values = value if isinstance(value, (list, tuple)) else [value]
    datatype = WIRE_TYPES[name]
    if datatype == "BYTES":
        return datatype, [len(values)], bytes_tensor(*(item.encode() for item in values))
    return datatype, [len(values)], np.array(values, triton_to_np_dtype(datatype)).tobytes()


def open_channel(server):
    return grpc.insecure_channel(server.grpc_url, options=[("grpc.enable_http_proxy", 0)])


def start_call(channel, message):
    """The call of one request. Without the metadata ``triton_grpc_error``: Triton 2.51 may die (signal 11) when it ends a
    stream with a status."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter((message,)))


def rows_of(call):
    """The responses of a call one by one, empty ones too. Raises Refused."""
    try:
        for answer in call:
            if answer.error_message:
                raise Refused(answer.error_message)
            yield _row(answer.infer_response)
    except grpc.RpcError as error:
        raise Refused(error.details(), error.code().name) from None


def _row(response):
    values = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            values[output.name] = [item.decode("utf-8") for item in deserialize_bytes_tensor(raw).tolist()]
        else:
            values[output.name] = np.frombuffer(raw, triton_to_np_dtype(output.datatype)).tolist()
    types = {output.name: output.datatype for output in response.outputs}
    shapes = {output.name: tuple(output.shape) for output in response.outputs}
    return Row(types, shapes, values, response.parameters["triton_final_response"].bool_param)


def ask_grpc(server, message):
    """Every response of one request. Raises Refused."""
    with open_channel(server) as channel:
        return list(rows_of(start_call(channel, message)))


def post(server, model, body, method="generate"):
    """``body``: a JSON value or raw bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{server.http_url}/v2/models/{model}/{method}"
    return httpx.post(
        url, content=content, headers={"content-type": "application/json"}, timeout=300, trust_env=False, verify=False
    )


def ask_http(server, model, body, method="generate"):
    """The outputs of each response by name; Triton writes one-element tensors as scalars, here all are lists."""
    response = post(server, model, body, method)
    assert response.status_code == 200, response.text
    lines = (
        [line.removeprefix("data:") for line in response.text.splitlines() if line] if method != "generate" else [response.text]
    )
    rows = [json.loads(line) for line in lines]
    for row in rows:
        assert (row.pop("model_name"), row.pop("model_version")) == (model, "1")
    return [{name: value if isinstance(value, list) else [value] for name, value in row.items()} for row in rows]


def ask_everywhere(server, model, inputs):
    """The same request over gRPC, ``generate`` (never streaming) and ``generate_stream``: the rows of each."""
    whole = {name: value for name, value in inputs.items() if name != "stream"}
    return {
        "grpc": [row.values for row in ask_grpc(server, grpc_message(model, inputs))],
        "generate": ask_http(server, model, whole),
        "generate_stream": ask_http(server, model, inputs, "generate_stream"),
    }


GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
CONTRACT_INPUTS = {
    "text_input": ("BYTES", [1]),
    "input_ids": ("INT64", [-1]),
    "stream": ("BOOL", [1]),
    "sampling_parameters": ("BYTES", [1]),
    "exclude_input_in_output": ("BOOL", [1]),
    **{f"return_{name}": ("BOOL", [1]) for name in (*RETURNS, "timing")},
}
CONTRACT_OUTPUTS = {
    "text_output": ("BYTES", [-1]),
    "finish_reason": ("BYTES", [-1]),
    "cumulative_logprob": ("FP32", [-1]),
    "logprobs": ("BYTES", [-1]),
    "num_input_tokens": ("UINT32", [1]),
    "num_output_tokens": ("UINT32", [-1]),
    "output_ids": ("INT64", [-1]),
    "prompt_logprobs": ("BYTES", [1]),
    "timing": ("BYTES", [1]),
}


def test_the_model_declares_the_contracts_inputs_and_outputs(server):
    metadata = httpx.get(f"{server.http_url}/v2/models/llama", trust_env=False).json()
    assert {each["name"]: (each["datatype"], each["shape"]) for each in metadata["inputs"]} == CONTRACT_INPUTS
    assert {each["name"]: (each["datatype"], each["shape"]) for each in metadata["outputs"]} == CONTRACT_OUTPUTS
    assert set(CONTRACT_OUTPUTS) == {spec.name for spec in TEXT_GENERATION_OUTPUTS}


def test_the_model_is_decoupled_unbatched_and_every_input_is_optional(server):
    config = httpx.get(f"{server.http_url}/v2/models/llama/config", trust_env=False).json()
    assert config["model_transaction_policy"] == {"decoupled": True} and config["max_batch_size"] == 0
    assert {each["name"] for each in config["input"] if each["optional"]} == set(CONTRACT_INPUTS)


@pytest.mark.parametrize("stream", [True, False])
def test_without_return_flags_the_text_is_the_only_output(server, stream):
    rows = ask_grpc(server, grpc_message("llama", question(GREEDY, text_input="hello", stream=stream)))
    assert all(row.types == {"text_output": "BYTES"} for row in rows) and (stream or len(rows) == 1)


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_return_flag_adds_its_output_and_no_other(server, stream, name):
    rows = ask_grpc(server, grpc_message("llama", question(GREEDY, text_input="hello", stream=stream, returns=(name,))))
    for row in rows:
        assert row.types == {"text_output": "BYTES", name: CONTRACT_OUTPUTS[name][0]}
        assert row.shapes == {"text_output": (1,), name: (len(row.values[name]),)}
    assert sum(len(row.values[name]) for row in rows) == (8 if name == "output_ids" else len(rows))
    off = question(GREEDY, text_input="hello", stream=stream) | {f"return_{name}": False}
    assert all(set(row.types) == {"text_output"} for row in ask_grpc(server, grpc_message("llama", off)))


@pytest.mark.parametrize("name", RETURNS)
def test_a_return_flag_may_come_as_a_request_parameter(server, name):
    inputs = question(GREEDY, text_input="hello")
    for value, expected in ((True, {"text_output", name}), ("true", {"text_output", name}), ("false", {"text_output"})):
        (row,) = ask_grpc(server, grpc_message("llama", inputs, **{f"return_{name}": value}))
        assert set(row.types) == expected


@pytest.mark.parametrize("inputs", [{"text_input": "hello"}, {"input_ids": [40, 41, 42]}], ids=["text", "ids"])
@pytest.mark.parametrize("asked_for", [False, True], ids=["plain", "empty final response asked for"])
def test_the_last_delta_is_the_final_response(server, inputs, asked_for):
    extra = {"triton_enable_empty_final_response": True} if asked_for else {}
    rows = ask_grpc(server, grpc_message("llama", question(GREEDY, stream=True, **inputs), **extra))
    assert [row.final for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all("text_output" in row.values for row in rows)


@pytest.mark.parametrize("asked_for", [False, True], ids=["plain", "empty final response asked for"])
def test_an_answer_that_does_not_stream_is_one_final_response(server, asked_for):
    extra = {"triton_enable_empty_final_response": True} if asked_for else {}
    (row,) = ask_grpc(server, grpc_message("llama", question(GREEDY, text_input="hello"), **extra))
    assert row.final and row.values["text_output"][0].startswith("hello")


def test_a_stop_string_makes_the_delta_that_completes_it_final(server):
    parameters = GREEDY | {"max_tokens": 64}
    whole = "".join(
        row.values["text_output"][0]
        for row in ask_grpc(server, grpc_message("llama", question(parameters, text_input="hello", stream=True)))
    )
    stop = whole[len(whole) // 2]
    rows = ask_grpc(server, grpc_message("llama", question(parameters | {"stop": stop}, text_input="hello", stream=True)))
    assert [row.final for row in rows] == [False] * (len(rows) - 1) + [True]
    assert "".join(row.values["text_output"][0] for row in rows) == whole[: whole.index(stop)]


@pytest.mark.parametrize("stream", [True, False])
def test_the_last_response_tells_when_what_happened(server, stream):
    inputs = question(GREEDY, text_input="hello", stream=stream, returns=("timing",))
    rows = ask_grpc(server, grpc_message("llama", inputs))
    assert ["timing" in row.values for row in rows] == [False] * (len(rows) - 1) + [True]
    timing = json.loads(rows[-1].values["timing"][0])
    assert set(timing) == {"queue_ms", "first_token_ms", "total_ms", "cached_tokens", "num_preemptions"}
    assert 0 <= timing["queue_ms"] <= timing["first_token_ms"] <= timing["total_ms"] < 60_000


def test_the_request_id_comes_back(server):
    message = grpc_message("llama", question(GREEDY, text_input="hello", stream=True))
    message.id = "my-request"
    with open_channel(server) as channel:
        assert {answer.infer_response.id for answer in start_call(channel, message)} == {"my-request"}
