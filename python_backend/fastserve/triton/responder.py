"""The thread that answers: detokenises, finds stop strings, sends, notices clients that went away.

It owns every open :class:`ResponseStream`. Whatever blocks on Triton's shared memory (sending, asking whether a request
was cancelled, updating metrics) happens here and never on the engine thread.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from fastserve.core.events import Aborted, Event, Failed, TokenEvent
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineStopped
from fastserve.engine.stats import EngineStats
from fastserve.errors import FastServeError, RequestCancelled
from fastserve.tasks.text_generation import GenerationStream, PreparedGeneration
from fastserve.text.tokenizer import Tokenizer
from fastserve.triton.protocol import Answer, ReturnFlags, encode_answer

logger = logging.getLogger(__name__)

CANCEL_SWEEP_S = 0.1
"""Seconds between two looks for cancelled requests."""
CANCEL_SWEEP_SIZE = 64
"""Requests looked at in one sweep: each look is a round trip to the server, so thousands of waiting requests take turns."""


class Channel(Protocol):
    """The way back to one client. Every method may block on the server."""

    def send(self, tensors: Mapping[str, npt.NDArray[Any]], *, final: bool) -> None: ...
    def fail(self, error: FastServeError) -> None: ...
    def is_cancelled(self) -> bool: ...


class MetricsSink(Protocol):
    """Where numbers go."""

    def update(self, stats: EngineStats) -> None: ...
    def count_ending(self, ending: str) -> None: ...


class ResponseStream:
    """One open request: its way back and its text so far."""

    def __init__(self, channel: Channel, prepared: PreparedGeneration, flags: ReturnFlags, tokenizer: Tokenizer) -> None:
        self.channel = channel
        self.request_id = prepared.request.request_id
        self._prepared = prepared
        self._flags = flags
        self._generation = GenerationStream(prepared, tokenizer)
        self._texts = [prepared.echo]
        self._token_ids: list[int] = []

    def push(self, event: TokenEvent) -> FinishReason | None:
        """Send what the token adds (streaming) or keep it; returns the finish reason once the whole answer is sent."""
        delta = self._generation.push(event)
        if self._prepared.stream:
            text, token_ids = delta.text, delta.token_ids
        else:
            self._texts.append(delta.text)
            self._token_ids += delta.token_ids
            if delta.finish_reason is None:
                return None
            text, token_ids = "".join(self._texts), tuple(self._token_ids)
        num_input_tokens = len(self._prepared.request.prompt_token_ids)
        answer = Answer(text, token_ids, delta.cumulative_logprob, num_input_tokens, delta.finish_reason)
        self.channel.send(encode_answer(answer, self._flags), final=delta.finish_reason is not None)
        return delta.finish_reason


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """Message to the responder: answer a request that never reached the engine."""

    channel: Channel
    error: FastServeError


class Responder:
    """Reads the queue that :class:`EngineThread` and the receiving threads write; ends after EngineStopped."""

    def __init__(self, outbox: queue.SimpleQueue[Any], abort: Callable[[int], None], metrics: MetricsSink) -> None:
        """``outbox`` carries ResponseStream (a new request, put there before it is submitted), Rejected, and the engine's
        messages. ``abort`` withdraws a request from the engine."""
        self._outbox = outbox
        self._abort = abort
        self._metrics = metrics
        self._streams: dict[int, ResponseStream] = {}
        self._sweep: deque[int] = deque()  # request ids in the order they are asked about; ended ones drop out
        self._thread = threading.Thread(target=self._main, name="fastserve-responder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _main(self) -> None:
        message: object = None
        next_sweep = time.monotonic()
        while not isinstance(message, EngineStopped):
            try:
                message = self._outbox.get(timeout=CANCEL_SWEEP_S if self._streams else None)
                self._handle(message)
            except queue.Empty:
                pass
            except Exception:  # a bug, or the server refused a metric: whoever waits for an answer must still get it
                logger.exception("a message to the responder could not be handled")
            if self._streams and time.monotonic() >= next_sweep:
                self._abort_cancelled()
                next_sweep = time.monotonic() + CANCEL_SWEEP_S

    def _handle(self, message: object) -> None:
        if isinstance(message, ResponseStream):
            self._streams[message.request_id] = message
            self._sweep.append(message.request_id)
        elif isinstance(message, list):
            for event in message:
                self._handle_event(event)
        elif isinstance(message, EngineStats):
            self._metrics.update(message)
        elif isinstance(message, Rejected):
            self._fail(message.channel, message.error)

    def _handle_event(self, event: Event) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None or isinstance(event, Aborted):
            return  # already answered here: a stop string, a client that went away
        if isinstance(event, Failed):
            del self._streams[event.request_id]
            self._fail(stream.channel, event.error)
            return
        try:
            reason = stream.push(event)
        except Exception:  # the client's way back is gone or its text cannot be made: this request ends, no other
            logger.exception("request %d could not be answered", event.request_id)
            self._withdraw(stream, RequestCancelled())
            return
        if reason is not None:
            del self._streams[event.request_id]
            self._metrics.count_ending(reason.value)
            if event.finish_reason is None:  # a stop string: the engine does not know yet
                self._abort(event.request_id)

    def _abort_cancelled(self) -> None:
        asked = 0
        for _ in range(len(self._sweep)):
            request_id = self._sweep.popleft()
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            asked += 1
            try:
                cancelled = stream.channel.is_cancelled()
            except Exception:  # the client's way back is gone: nobody is left to read an answer
                logger.exception("request %d could not be asked about", request_id)
                cancelled = True
            if cancelled:
                self._withdraw(stream, RequestCancelled())
            else:
                self._sweep.append(request_id)
            if asked == CANCEL_SWEEP_SIZE:
                break

    def _withdraw(self, stream: ResponseStream, error: FastServeError) -> None:
        del self._streams[stream.request_id]
        self._abort(stream.request_id)
        self._fail(stream.channel, error)

    def _fail(self, channel: Channel, error: FastServeError) -> None:
        self._metrics.count_ending(error.code.value.lower())
        try:
            channel.fail(error)
        except Exception:
            logger.exception("an error could not be delivered: %s", error)
