"""For models with a batch dimension: every output gets the leading 1 of its request's only row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from fastserve.errors import FastServeError
from fastserve.triton.responder import Channel


class BatchedChannel:
    """Implements ``responder.Channel`` around another one."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def send(self, tensors: Mapping[str, npt.NDArray[Any]], *, final: bool) -> None:
        self._channel.send({name: tensor[None] for name, tensor in tensors.items()}, final=final)

    def fail(self, error: FastServeError) -> None:
        self._channel.fail(error)

    def is_cancelled(self) -> bool:
        return self._channel.is_cancelled()
