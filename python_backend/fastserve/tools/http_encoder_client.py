"""The encoder contract over HTTP: Triton's ``infer`` with JSON tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx

from fastserve.tools.client import check_text, closed_client
from fastserve.tools.encoder_client import EncoderRequest, Outputs
from fastserve.tools.http_client import failure, model_url, open_client, parse, unreachable


class HttpEncoderClient:
    """See :class:`fastserve.tools.encoder_client.EncoderClient`. ``url``: ``http://host:port``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = open_client(url)

    def infer(self, model: str, request: EncoderRequest) -> Outputs:
        inputs = [
            {"name": name, "datatype": datatype, "shape": [1, len(values)], "data": values}
            for name, datatype, values in request.tensors()
        ]
        payload = self._exchange("POST", model, "infer", {"inputs": inputs, "parameters": request.wire_parameters()})
        return {output["name"]: output["data"] for output in payload["outputs"]}

    def model_parameters(self, model: str) -> Mapping[str, str]:
        parameters = self._exchange("GET", model, "config", None).get("parameters", {})
        return {name: value.get("string_value", "") for name, value in parameters.items()}

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> HttpEncoderClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _exchange(self, method: str, model: str, action: str, body: object) -> dict[str, Any]:
        check_text("model", model)
        if self._client.is_closed:
            raise closed_client()
        try:
            response = self._client.request(method, f"{model_url(self._url, model)}/{action}", json=body)
        except httpx.RequestError as error:
            raise unreachable(self._url, error) from None
        payload = parse(response.text, response.status_code)
        if "error" in payload:
            raise failure(payload, response.status_code)
        return payload
