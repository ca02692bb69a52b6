"""The open requests to a Python function, and every way in which one ends. Owned by the responder's thread."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable

from fastserve.core.admission import Deadlines
from fastserve.errors import DeadlineExceeded, ErrorCode, FastServeError, RequestCancelled, ResponderFailed
from fastserve.functions.local_socket import FunctionUnavailable
from fastserve.functions.wire import Drop, Failure, Result, encode
from fastserve.triton.function_io import encode_results
from fastserve.triton.responder import Channel

logger = logging.getLogger(__name__)

CANCEL_SWEEP_SIZE = 16
"""Requests asked about in one sweep, in turns: each look is a round trip to the server."""


class FunctionFailed(FastServeError):
    """The user's function raised, or returned what is no answer."""


_ERRORS: dict[ErrorCode, type[FastServeError]] = {ErrorCode.UNAVAILABLE: FunctionUnavailable}
"""By the code of a :class:`Failure`; every other code is :class:`FunctionFailed`."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenRequest:
    """``call_id``: grows from request to request; ``rows``: its texts; ``deadline``: seconds on ``time.monotonic``."""

    call_id: int
    channel: Channel
    rows: int
    deadline: float | None


class FunctionRequests:
    """Ends each request that is added exactly once."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        """``send`` puts a frame on its way to the function's process and never blocks."""
        self.ended = 0
        """Requests that have ended."""
        self._send = send
        self._open: dict[int, OpenRequest] = {}
        self._deadlines = Deadlines(self._open)
        self._turns: deque[int] = deque()

    def __len__(self) -> int:
        """Requests that are open."""
        return len(self._open)

    def add(self, request: OpenRequest) -> None:
        self._open[request.call_id] = request
        self._deadlines.add(request.deadline, request.call_id)
        self._turns.append(request.call_id)

    def refuse(self, channel: Channel, error: FastServeError) -> None:
        """End a request that was never added."""
        self.ended += 1
        try:
            channel.fail(error)
        except Exception:
            logger.exception("an error could not be delivered: %s", error)

    def answer(self, message: Result | Failure) -> None:
        """End the request it belongs to, unless that was ended from here."""
        request = self._open.get(message.call_id)
        if request is None:
            return
        if isinstance(message, Failure):
            self._fail(request, _ERRORS.get(message.code, FunctionFailed)(message.message))
        elif len(message.results) != request.rows:
            self._fail(request, FunctionFailed(f"{len(message.results)} results came for {request.rows} texts"))
        else:
            self._deliver(request, message)

    def sweep(self, now: float) -> None:
        """End requests whose time is up or whose client has gone away; the other side, which may not have begun, is told."""
        for call_id in list(self._deadlines.pop_due(now)):
            self._withdraw(
                self._open[call_id], DeadlineExceeded("the deadline (deadline_ms) passed before the function answered")
            )
        asked = 0
        for _ in range(len(self._turns)):
            if asked == CANCEL_SWEEP_SIZE:
                break
            request = self._open.get(self._turns.popleft())
            if request is None:
                continue
            asked += 1
            if _is_cancelled(request.channel):
                self._withdraw(request, RequestCancelled())
            else:
                self._turns.append(request.call_id)

    def end_all(self, error: FastServeError) -> None:
        for request in list(self._open.values()):
            self._fail(request, error)

    def _deliver(self, request: OpenRequest, result: Result) -> None:
        try:
            request.channel.send(encode_results(result.results), final=True)
        except Exception as error:
            logger.exception("an answer could not be sent")
            self._fail(request, ResponderFailed(f"the answer could not be sent ({type(error).__name__}: {error})"))
        else:
            del self._open[request.call_id]
            self.ended += 1

    def _withdraw(self, request: OpenRequest, error: FastServeError) -> None:
        self._send(encode(Drop(request.call_id)))
        self._fail(request, error)

    def _fail(self, request: OpenRequest, error: FastServeError) -> None:
        del self._open[request.call_id]
        self.refuse(request.channel, error)


def _is_cancelled(channel: Channel) -> bool:
    try:
        return channel.is_cancelled()
    except Exception:  # Triton no longer knows the request
        logger.exception("a request could not be asked about")
        return True
