"""The generation contract over gRPC: one ``ModelStreamInfer`` call a request, all on one channel."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from fastserve.errors import ToolError
from fastserve.tools.client import (
    GenerateRequest,
    GenerateResponse,
    ServerUnreachable,
    TensorValue,
    closed_client,
    is_loopback,
    refusal,
)

_TRITON_NAMES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNIMPLEMENTED": "UNSUPPORTED"}
_CONNECTION_MESSAGES = (
    "failed to connect",
    "DNS resolution failed",
    "errors resolving",
    "Socket closed",
    "Connection re",
    "GOAWAY",
    "Broken pipe",
)
_MAX_MESSAGE_BYTES = 2**31 - 1


class GrpcGenerateClient:
    """See :class:`fastserve.tools.client.GenerateClient`. ``url``: ``host:port``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel = open_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def stream(self, request: GenerateRequest) -> GrpcStream:
        """Send the request; its responses arrive while the stream is iterated.

        Raises :class:`fastserve.errors.InvalidRequest` and, when the client is closed, :class:`ToolError`.
        """
        message = infer_message(request.model, request.tensors(), batch_dimension=request.batch_dimension)
        try:
            call = self._stub.ModelStreamInfer(iter((message,)))
        except ValueError:  # what grpc says of a closed channel
            raise closed_client() from None
        return GrpcStream(call, self._url)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> GrpcGenerateClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class GrpcStream:
    """See :class:`fastserve.tools.client.ResponseStream`."""

    def __init__(self, call: Any, url: str) -> None:
        self._call = call
        self._url = url
        self._closed = False

    def __iter__(self) -> GrpcStream:
        return self

    def __next__(self) -> GenerateResponse:
        while not self._closed:
            try:
                answer = next(self._call)
            except grpc.RpcError as error:
                if self._closed:
                    break
                raise failure(error, self._url) from None
            if answer.error_message:
                self.close()
                raise refusal(answer.error_message, "UNKNOWN")
            if answer.infer_response.outputs:  # else the empty response that only says "final"
                return GenerateResponse(outputs_of(answer.infer_response), time.monotonic())
        raise StopIteration

    def close(self) -> None:
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> GrpcStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_channel(url: str) -> grpc.Channel:
    """A channel to ``host:port``; connects when it is used. Raises :class:`ToolError` for what is no address."""
    options: list[tuple[str, int]] = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
    try:
        host = urlsplit(f"//{url}").hostname
    except ValueError as error:
        raise ToolError(f"{url}: {error}; use host:port or [address]:port") from None
    if is_loopback(host):
        options.append(("grpc.enable_http_proxy", 0))
    return grpc.insecure_channel(url, options=options)


def infer_message(model: str, tensors: Sequence[TensorValue], *, batch_dimension: bool) -> Any:
    """A ``ModelInferRequest``; with ``batch_dimension`` each tensor is one row of a batch."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, datatype, values in tensors:
        shape = [1, len(values)] if batch_dimension else [len(values)]
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(_encode(datatype, values))
    return message


def _encode(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        encoded = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    return np.asarray(values, dtype=triton_to_np_dtype(datatype)).tobytes()


def outputs_of(response: Any) -> dict[str, list[Any]]:
    """The tensors of a ``ModelInferResponse``, flat, by name."""
    decoded = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            decoded[output.name] = [item.decode("utf-8", "replace") for item in deserialize_bytes_tensor(raw).tolist()]
        else:
            decoded[output.name] = np.frombuffer(raw, dtype=triton_to_np_dtype(output.datatype)).tolist()
    return decoded


def failure(error: Any, url: str) -> Exception:
    """What a ``grpc.RpcError`` means: :class:`ServerUnreachable` or :class:`RequestFailed`."""
    status, details = error.code().name, error.details() or ""
    if status == "UNAVAILABLE" and any(part in details for part in _CONNECTION_MESSAGES):
        return ServerUnreachable(f"no answer from {url} ({details}); is the server running there? `fastserve serve` starts one")
    return refusal(details, _TRITON_NAMES.get(status, status))
