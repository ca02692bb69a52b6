"""The thread that answers: makes answers of what the engine computed, sends them, notices clients that went away.

It owns every open :class:`ResponseStream`. Whatever blocks on Triton's shared memory (sending, asking whether a request
was cancelled, updating metrics) happens here and never on the engine thread.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from fastserve.core.events import Aborted, Failed
from fastserve.engine.engine_thread import EngineStopped
from fastserve.engine.stats import EngineStats
from fastserve.errors import FastServeError, RequestCancelled, ResponderFailed, ShuttingDown
from fastserve.triton.metrics_report import MetricsReport, MetricsSink
from fastserve.triton.response_pace import Held, ResponsePace

logger = logging.getLogger(__name__)

CANCEL_SWEEP_S = 0.1
"""Seconds between two looks for cancelled requests."""
CANCEL_SWEEP_SIZE = 64
"""Waiting requests asked about in one sweep: each look is a round trip to the server, so thousands of them take turns."""
CANCEL_SWEEP_OLDEST = 32
"""Requests without a token asked about in every sweep, the longest waiting first."""
CANCEL_SWEEP_REST = 4.0
"""A sweep that took long is followed by a pause of this many times as long: sending tokens comes first."""


class Channel(Protocol):
    """The way back to one client. Every method may block on the server."""

    def send(self, tensors: Mapping[str, npt.NDArray[Any]], *, final: bool) -> None: ...
    def fail(self, error: FastServeError) -> None: ...
    def is_cancelled(self) -> bool: ...


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEnd:
    """How an answer ended. ``ending``: what is counted; ``engine_knows``: false when the end was found here, so that the
    engine has to be told."""

    ending: str
    engine_knows: bool = True


class ResponseStream(abc.ABC):
    """One open request: its way back and its answer so far. Owned by the responder."""

    def __init__(self, channel: Channel, request_id: int) -> None:
        self.channel = channel
        self.request_id = request_id
        self.started = False
        """Whether anything of its answer has come."""
        self.pushed_at = 0.0
        """When events were pushed last, seconds on the responder's clock."""

    @abc.abstractmethod
    def push(self, events: Sequence[Any]) -> StreamEnd | None:
        """Take what was computed, at least one event, and send what it adds to the answer. Returns how the answer ended if it
        did; events after that are not looked at. Raises a FastServeError when no answer can be made."""

    def may_wait(self, event: Any) -> bool:
        """Whether ``event`` may be pushed later, together with those that follow; not by default. Never raises."""
        return False

    def flush(self) -> None:  # noqa: B027  (most hold nothing back)
        """Send what was held back: an error follows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """Message to the responder: answer a request that never reached the engine."""

    channel: Channel
    error: FastServeError


class Responder:
    """Reads the queue that :class:`EngineThread` and the receiving threads write; ends after EngineStopped."""

    def __init__(
        self, outbox: queue.SimpleQueue[Any], abort: Callable[[int], None], metrics: MetricsSink, pace: ResponsePace | None = None
    ) -> None:
        """``outbox`` carries ResponseStream (a new request, put there before it is submitted), Rejected, and the engine's
        messages. ``abort`` withdraws a request from the engine. ``pace``: None means that no token waits for the next."""
        self._outbox = outbox
        self._pace = pace or ResponsePace()
        self._held: dict[int, Held] = {}  # by request, the longest held first
        self._interval = 0.0  # between responses of a stream, the last time that some were due
        self._abort = abort
        self._report = MetricsReport(metrics, time.monotonic)
        self._streams: dict[int, ResponseStream] = {}
        self._turns: deque[int] = deque()  # requests that wait, in the order they are asked about; others drop out
        self._newest_id = self._swept_id = -1  # of all requests so far, and of those that were there at the last sweep
        self._thread = threading.Thread(target=self._main, name="fastserve-responder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _main(self) -> None:
        stopped = False
        next_sweep = time.monotonic()
        while not stopped:
            messages = self._take()
            try:
                self._handle(messages)
                if self._streams and time.monotonic() >= next_sweep:
                    started = time.monotonic()
                    self._abort_cancelled()
                    pause = max(CANCEL_SWEEP_S, CANCEL_SWEEP_REST * (time.monotonic() - started))
                    next_sweep = time.monotonic() + pause
            except BaseException as error:  # a bug: nobody may wait for an answer that cannot come
                logger.exception("the responder failed; every open request ends")
                for stream in list(self._streams.values()):
                    self._withdraw(stream, ResponderFailed(f"the answer could not be sent ({type(error).__name__}: {error})"))
            self._report.send_when_due(busy=bool(self._streams), called_away=self._is_called_away)
            stopped = any(isinstance(message, EngineStopped) for message in messages)
        for request_id in list(self._held):
            self._answer(request_id, time.monotonic())
        for stream in list(self._streams.values()):
            self._withdraw(stream, ShuttingDown("the model was unloaded before the request finished"))
        self._report.send()

    def _take(self) -> list[object]:
        """Wait for a message, or until something was held for long enough, then take all messages that are there."""
        messages: list[object] = []
        timeout = CANCEL_SWEEP_S if self._streams or self._report.has_news else None
        if (due := self._next_due()) is not None:
            timeout = min(CANCEL_SWEEP_S, max(0.0, due - time.monotonic()))
        with contextlib.suppress(queue.Empty):
            messages.append(self._outbox.get(timeout=timeout))
            while True:
                messages.append(self._outbox.get_nowait())
        return messages

    def _next_due(self) -> float | None:
        """When something will have been held for long enough."""
        return next((held.since + self._interval for held in self._held.values()), None)

    def _is_called_away(self) -> bool:
        due = self._next_due()
        return not self._outbox.empty() or (due is not None and time.monotonic() >= due)

    def _handle(self, messages: Iterable[object]) -> None:
        """Handle what has come since the last time. Usually that is one iteration of the engine; when the engine is the
        faster one, a stream's tokens of several iterations go out in one response, so that nobody falls ever further
        behind, and when there are many streams (see :class:`ResponsePace`)."""
        now = time.monotonic()
        for message in messages:
            if isinstance(message, ResponseStream):
                self._streams[message.request_id] = message
                self._turns.append(message.request_id)
                self._newest_id = max(self._newest_id, message.request_id)  # long texts come late
            elif isinstance(message, list):
                self._sort(message, now)
            elif isinstance(message, EngineStats):
                self._report.show(message)
            elif isinstance(message, Rejected):
                self._fail(message.channel, message.error)
        self._answer_due(now)

    def _answer_due(self, now: float) -> None:
        self._interval = self._pace.interval(len(self._held))
        due = [request_id for request_id, held in self._held.items() if not self._waits(request_id, held, now)]
        started = time.thread_time()  # waiting for a core is no cost
        for request_id in due:
            self._answer(request_id, now)
        if due:
            self._pace.sent(len(due), time.thread_time() - started)

    def _waits(self, request_id: int, held: Held, now: float) -> bool:
        stream = self._streams.get(request_id)
        return held.may_wait and stream is not None and now - stream.pushed_at < self._interval

    def _sort(self, events: Iterable[Any], now: float) -> None:
        """Put what was computed with the rest of its request; deliver errors, after what was computed before them."""
        for event in events:
            if isinstance(event, Failed):
                self._answer(event.request_id, now)
                if (stream := self._streams.pop(event.request_id, None)) is not None:
                    self._flush(stream)
                    self._fail(stream.channel, event.error)
            elif not isinstance(event, Aborted):  # whoever aborted a request has answered it
                if (held := self._held.get(event.request_id)) is None:
                    held = self._held[event.request_id] = Held(now)
                stream = self._streams.get(event.request_id)
                held.may_wait = held.may_wait and stream is not None and stream.may_wait(event)
                held.events.append(event)

    def _flush(self, stream: ResponseStream) -> None:
        try:
            stream.flush()
        except Exception:
            logger.exception("request %d: what was held back could not be sent", stream.request_id)

    def _answer(self, request_id: int, now: float) -> None:
        """Push what is held of a request, if anything is."""
        stream, held = self._streams.get(request_id), self._held.pop(request_id, None)
        if stream is None or held is None:
            return  # answered already: a stop string, a client that went away
        stream.pushed_at = now
        try:
            end = stream.push(held.events)
        except FastServeError as error:  # no answer can be made of what was computed, and it says why
            self._withdraw(stream, error)
            return
        except BaseException as error:  # a bug in making its answer, or nothing can be sent: this request ends, no other
            logger.exception("request %d could not be answered", request_id)
            self._withdraw(stream, ResponderFailed(f"the answer could not be sent ({type(error).__name__}: {error})"))
            return
        if end is not None:
            del self._streams[request_id]
            if not end.engine_knows:
                self._abort(request_id)
            self._report.count(end.ending)

    def _abort_cancelled(self) -> None:
        """Ask about every request that has begun to be answered, about the oldest others (they may hold blocks already),
        and about some of those that wait, in turns. A request that came after the last sweep is spared: most requests to
        a small model are answered before the next one, and a look costs as much as an answer."""
        known = [stream for stream in self._streams.values() if stream.request_id <= self._swept_id]
        others = (stream for stream in known if not stream.started)
        oldest = list(itertools.islice(others, CANCEL_SWEEP_OLDEST))
        for stream in [stream for stream in known if stream.started] + oldest:
            self._ask(stream)
        asked = 0
        for _ in range(len(self._turns)):
            if asked == CANCEL_SWEEP_SIZE:
                break
            request_id = self._turns.popleft()
            waiting = self._streams.get(request_id)
            if waiting is None or waiting.started:
                continue
            if request_id > self._swept_id:
                self._turns.append(request_id)
                continue
            asked += 1
            if self._ask(waiting):
                self._turns.append(request_id)
        self._swept_id = self._newest_id

    def _ask(self, stream: ResponseStream) -> bool:
        """Whether the client still wants its answer; if not, the request ends."""
        try:
            if not stream.channel.is_cancelled():
                return True
            self._withdraw(stream, RequestCancelled())
        except Exception as error:  # Triton no longer knows the request: nobody is left to read an answer
            logger.exception("request %d could not be asked about", stream.request_id)
            self._withdraw(stream, ResponderFailed(f"the client could not be reached ({type(error).__name__}: {error})"))
        return False

    def _withdraw(self, stream: ResponseStream, error: FastServeError) -> None:
        """End a request from here: free what it holds and say why to whoever may still listen."""
        del self._streams[stream.request_id]
        self._held.pop(stream.request_id, None)
        self._abort(stream.request_id)
        self._fail(stream.channel, error)

    def _fail(self, channel: Channel, error: FastServeError) -> None:
        try:
            channel.fail(error)
        except Exception:
            logger.exception("an error could not be delivered: %s", error)
        self._report.count(error.code.value.lower())
