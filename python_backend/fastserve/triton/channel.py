"""The way back to one client through Triton's response sender."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from fastserve.errors import ErrorCode, FastServeError

TRITON_CODES = {code: getattr(pb_utils.TritonError, code.value) for code in ErrorCode}


class TritonChannel:
    """Implements ``responder.Channel``. Used by the responder thread only."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()

    def send(self, tensors: Mapping[str, npt.NDArray[Any]], *, final: bool) -> None:
        outputs = [pb_utils.Tensor(name, array) for name, array in tensors.items()]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=flags)

    def fail(self, error: FastServeError) -> None:
        """End the request with an error. The message begins with the code's name, because Triton keeps the code from most
        clients: HTTP shows 400 for all, and a gRPC stream only the message."""
        message = f"{error.code.value}: {error}"
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, TRITON_CODES[error.code]))
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())
