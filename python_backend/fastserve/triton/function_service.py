"""A model that is a Python function: takes requests on Triton's thread and hands them to the process that runs it."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

from fastserve.core.admission import check_queue
from fastserve.errors import FastServeError, InvalidRequest, RequestUnreadable
from fastserve.functions.frame_writer import FrameWriter
from fastserve.functions.local_socket import connect
from fastserve.functions.wire import Call, FrameTooLarge, encode
from fastserve.triton.function_io import FunctionSettings, parse_function_input
from fastserve.triton.function_requests import OpenRequest
from fastserve.triton.function_responder import FunctionResponder
from fastserve.triton.responder import Channel, Rejected

logger = logging.getLogger(__name__)


class FunctionService:
    """One model instance. :meth:`accept` and :meth:`stop` are called on Triton's thread and never block on the function."""

    def __init__(self, args: dict[str, str], parameters: Mapping[str, str]) -> None:
        """``parameters``: of config.pbtxt. Connects; raises ConfigError, FunctionUnavailable or WireError."""
        self._settings = FunctionSettings.parse(parameters)
        self._call_ids = itertools.count()
        self._connection = connect(self._settings.socket_directory)
        self._writer = FrameWriter(self._connection)
        self._responder = FunctionResponder(self._connection, self._writer.put)
        self._writer.start()
        self._responder.start()
        logger.info("%s is connected to the process that runs its function", args["model_name"])

    def accept(self, request: Any) -> None:
        """Take one request of Triton's; it is answered later, once, by the responder's thread. Never raises."""
        from fastserve.triton.channel import TritonChannel

        try:
            channel = TritonChannel(request)
        except Exception:
            logger.exception("Triton gave no way to answer a request")
            return
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            self.submit(channel, tensors, json.loads(request.parameters() or "{}"))
        except FastServeError as error:
            self._responder.put(Rejected(channel, error))
        except Exception as error:  # a bug in reading: this request is answered, the others go on
            logger.exception("a request could not be read")
            self._responder.put(Rejected(channel, RequestUnreadable(error)))

    def submit(self, channel: Channel, tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        """Send the call of a request on its way. Raises InvalidRequest or QueueFull, and then nothing was sent."""
        check_queue(self._responder.num_open(), self._settings.max_queue_size)
        item = parse_function_input(tensors, parameters, self._settings)
        deadline = time.monotonic() + item.deadline_ms / 1000 if item.deadline_ms else None
        call = Call(next(self._call_ids), item.texts, item.parameters)
        try:
            frame = encode(call)
        except FrameTooLarge as error:
            field = {"header": "parameters", "body": "text_input"}[error.part]
            raise InvalidRequest(
                field, f"{sum(map(len, item.texts))} characters in {len(item.texts)} texts", str(error)
            ) from None
        self._responder.put(OpenRequest(call.call_id, channel, len(item.texts), deadline))
        self._writer.put(frame)

    def stop(self) -> None:
        """Unload: end what is open, hang up."""
        self._responder.stop()
        with contextlib.suppress(OSError):  # the other side may have hung up
            self._connection.shutdown(socket.SHUT_RDWR)  # also ends a write that waits
        self._writer.close()
        self._connection.close()
