"""Raw requests to encoders over every protocol. ``EncoderClient`` can say nothing wrong and asks for one row at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from fastserve.tools.launcher import TritonLauncher
from tests.e2e.test_contract_wire import Refused, bytes_tensor, grpc_message, open_channel

Rows = Sequence[Any]
"""What one input says: for each row a text, a list of texts or a list of whole numbers."""
Server = TritonLauncher


@dataclasses.dataclass(frozen=True)
class Reply:
    """Every output by name: the Triton data type, the shape, and the values row by row."""

    types: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, list[Any]]

    def row(self, index: int) -> dict[str, Any]:
        return {name: rows[index] for name, rows in self.values.items()}

    def results(self) -> list[Any]:
        """The ``result`` of each row as JSON values."""
        return [json.loads(row[0]) for row in self.values["result"]]


def infer_message(model: str, inputs: Mapping[str, Rows], *, outputs: Sequence[str] = (), **parameters: Any) -> Any:
    """``outputs``: those asked for; none means all. ``parameters``: request parameters."""
    message = grpc_message(model, {}, tensors={name: _tensor(rows) for name, rows in inputs.items()}, **parameters)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def infer_grpc(server: Server, model: str, inputs: Mapping[str, Rows], **more: Any) -> Reply:
    """One ``ModelInfer`` call. Raises Refused."""
    with open_channel(server) as channel:
        return call_grpc(channel, infer_message(model, inputs, **more))


def call_grpc(channel: grpc.Channel, message: Any) -> Reply:
    """``message``: as :func:`infer_message` makes it. Raises Refused."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        response: service_pb2.ModelInferResponse = stub.ModelInfer(message)
    except grpc.RpcError as error:
        raise Refused(error.details(), error.code().name) from None
    shapes = {output.name: tuple(output.shape) for output in response.outputs}
    values = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            flat: Any = np.array([item.decode("utf-8") for item in deserialize_bytes_tensor(raw).tolist()], object)
        else:
            flat = np.frombuffer(raw, triton_to_np_dtype(output.datatype))
        values[output.name] = flat.reshape(output.shape).tolist()
    return Reply({output.name: output.datatype for output in response.outputs}, shapes, values)


def infer_http(
    server: Server, model: str, inputs: Mapping[str, Rows], *, outputs: Sequence[str] = (), **parameters: Any
) -> Reply:
    """One POST to ``infer``. Raises Refused with the status."""
    tensors = []
    for name, rows in inputs.items():
        datatype, shape, _ = _tensor(rows)
        tensors.append({"name": name, "datatype": datatype, "shape": shape, "data": rows})
    body: dict[str, Any] = {"inputs": tensors}
    if parameters:
        body["parameters"] = parameters
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    found = post(server, f"{model}/infer", body)["outputs"]
    shapes = {output["name"]: tuple(output["shape"]) for output in found}
    values = {output["name"]: np.array(output["data"], object).reshape(output["shape"]).tolist() for output in found}
    return Reply({output["name"]: output["datatype"] for output in found}, shapes, values)


def generate(server: Server, model: str, inputs: Mapping[str, Any], **parameters: Any) -> dict[str, list[Any]]:
    """One POST to ``generate``: the outputs of its only row; Triton writes one-element tensors as scalars, here all are
    lists. Raises Refused with the status."""
    answer = post(server, f"{model}/generate", dict(inputs) | parameters)
    assert (answer.pop("model_name"), answer.pop("model_version")) == (model, "1")
    return {name: value if isinstance(value, list) else [value] for name, value in answer.items()}


def post(server: Server, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Raises Refused when the status is not 200."""
    response = httpx.post(f"{server.http_url}/v2/models/{path}", json=body, timeout=300, trust_env=False)
    if response.status_code != 200:
        raise Refused(response.json()["error"], response.status_code)
    answer: dict[str, Any] = response.json()
    return answer


def _tensor(rows: Rows) -> tuple[str, list[int], bytes]:
    """Data type, shape with the batch dimension, and bytes."""
    nested = [row if isinstance(row, (list, tuple)) else [row] for row in rows]
    shape = [len(nested), len(nested[0])]
    if isinstance(nested[0][0], int):
        return "INT32", shape, np.array(nested, np.int32).tobytes()
    texts = [item if isinstance(item, bytes) else item.encode() for row in nested for item in row]
    return "BYTES", shape, bytes_tensor(*texts)
