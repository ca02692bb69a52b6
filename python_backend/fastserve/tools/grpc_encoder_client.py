"""The encoder contract over gRPC: one ``ModelInfer`` call a request, all on one channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fastserve.tools.client import check_text, closed_client
from fastserve.tools.encoder_client import EncoderRequest, Outputs
from fastserve.tools.grpc_client import failure, infer_message, open_channel, outputs_of


class GrpcEncoderClient:
    """See :class:`fastserve.tools.encoder_client.EncoderClient`. ``url``: ``host:port``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel = open_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, model: str, request: EncoderRequest) -> Outputs:
        check_text("model", model)
        message = infer_message(model, request.tensors(), batch_dimension=True)
        for name, value in request.wire_parameters().items():
            parameter = message.parameters[name]
            if isinstance(value, bool):
                parameter.bool_param = value
            elif isinstance(value, int):
                parameter.int64_param = value
            else:
                parameter.string_param = value
        return outputs_of(self._call(self._stub.ModelInfer, message))

    def model_parameters(self, model: str) -> Mapping[str, str]:
        check_text("model", model)
        response = self._call(self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=model))
        return {name: value.string_value for name, value in response.config.parameters.items()}

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> GrpcEncoderClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, method: Callable[[Any], Any], message: Any) -> Any:
        try:
            return method(message)
        except grpc.RpcError as error:
            raise failure(error, self._url) from None
        except ValueError:  # what grpc says of a closed channel
            raise closed_client() from None
