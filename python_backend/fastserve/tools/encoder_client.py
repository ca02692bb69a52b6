"""A client of the encoder contract (its tensors and parameters are in the README), the same over gRPC and HTTP.

::

    with connect_encoder("127.0.0.1:8001") as client:
        outputs = client.infer("ner", EncoderRequest({"text_input": "Ada lives in London"}))
        print(result_of(outputs))
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from fastserve.config import GENERATION_TASK, TASK_PARAMETER
from fastserve.errors import InvalidRequest
from fastserve.tools.client import (
    RequestFailed,
    TensorValue,
    check_text,
    missing_library,
    protocol_and_address,
)

Scalar = str | int | float | bool
Outputs = Mapping[str, list[Any]]
"""One row's output tensors by name, each flat: texts as str, numbers as Python numbers."""

RESULT = "result"
"""The output that holds an answer as JSON, ready to show."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderRequest:
    """One row: what is asked of an encoder model, whichever model that is."""

    texts: Mapping[str, str]
    """By input: text_input and text_pair, or question and context."""
    spans: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Of relation extraction: character spans of "head" and "tail", end exclusive."""
    candidate_labels: Sequence[str] = ()
    """Of zero-shot classification."""
    parameters: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)

    def tensors(self) -> list[TensorValue]:
        """The inputs that are sent. Raises :class:`InvalidRequest` for what cannot be sent."""
        for name, text in self.texts.items():
            check_text(name, text)
        for label in self.candidate_labels:
            check_text("candidate_labels", label)
        tensors: list[TensorValue] = [(name, "BYTES", [text]) for name, text in self.texts.items()]
        tensors += [(name, "INT32", list(span)) for name, span in self.spans.items()]
        if self.candidate_labels:
            tensors.append(("candidate_labels", "BYTES", list(self.candidate_labels)))
        return tensors

    def wire_parameters(self) -> dict[str, str | int | bool]:
        """The request parameters as they are sent: fractions as text, because Triton has had no type for them everywhere."""
        sent: dict[str, str | int | bool] = {}
        for name, value in self.parameters.items():
            check_text(name, str(value))
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise InvalidRequest(name, value, "a 64-bit integer")
            sent[name] = repr(value) if isinstance(value, float) else value
        return sent


class EncoderClient(Protocol):
    """A connection to one server; may be used from many threads at once.

    Its methods raise :class:`RequestFailed`, :class:`fastserve.tools.client.ServerUnreachable`, and
    :class:`fastserve.errors.ToolError` once it is closed.
    """

    def infer(self, model: str, request: EncoderRequest) -> Outputs: ...
    def model_parameters(self, model: str) -> Mapping[str, str]:
        """``parameters`` of the model's config.pbtxt."""

    def close(self) -> None: ...
    def __enter__(self) -> EncoderClient: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def connect_encoder(url: str) -> EncoderClient:
    """As :func:`fastserve.tools.client.connect`, for encoder models."""
    protocol, address = protocol_and_address(url)
    try:
        if protocol == "http":
            from fastserve.tools.http_encoder_client import HttpEncoderClient

            return HttpEncoderClient(address)
        from fastserve.tools.grpc_encoder_client import GrpcEncoderClient

        return GrpcEncoderClient(address)
    except ImportError as error:
        raise missing_library(error) from None


def task_of(client: EncoderClient, model: str) -> str:
    """The model's task, as its configuration on the server says; text-generation where it says nothing.

    Raises what the client's methods raise.
    """
    return client.model_parameters(model).get(TASK_PARAMETER, GENERATION_TASK)


def result_of(outputs: Outputs) -> Any:
    """What an answer says, as JSON values: its ``result``, else (embeddings) all its tensors.

    Raises :class:`RequestFailed` when ``result`` is no JSON.
    """
    if RESULT not in outputs:
        return dict(outputs)
    try:
        return json.loads(outputs[RESULT][0])
    except (ValueError, IndexError):
        raise RequestFailed("INTERNAL", f"the server's {RESULT} is no JSON: {str(outputs[RESULT])[:200]}") from None
