"""The thread that answers: detokenises, finds stop strings, sends, notices clients that went away.

It owns every open :class:`ResponseStream`. Whatever blocks on Triton's shared memory (sending, asking whether a request
was cancelled, updating metrics) happens here and never on the engine thread.
"""

from __future__ import annotations

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

from fastserve.core.events import Event, Failed, TokenEvent
from fastserve.core.request import FinishReason
from fastserve.engine.engine_thread import EngineStopped
from fastserve.engine.stats import EngineStats
from fastserve.errors import FastServeError, RequestCancelled, ResponderFailed, ShuttingDown
from fastserve.tasks.text_generation import GenerationStream, PreparedGeneration
from fastserve.text.tokenizer import Tokenizer
from fastserve.triton.protocol import Answer, ReturnFlags, encode_answer

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


class MetricsSink(Protocol):
    """Where numbers go."""

    def update(self, stats: EngineStats) -> None: ...
    def count_ending(self, ending: str) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationEnd:
    """How an answer ended. ``engine_knows``: false when a stop string was found here, so that it has to be told."""

    reason: FinishReason
    engine_knows: bool


class ResponseStream:
    """One open request: its way back and its text so far."""

    def __init__(self, channel: Channel, prepared: PreparedGeneration, flags: ReturnFlags, tokenizer: Tokenizer) -> None:
        self.channel = channel
        self.request_id = prepared.request.request_id
        self._prepared = prepared
        self._flags = flags
        self._generation = GenerationStream(prepared, tokenizer)
        self._texts = [prepared.echo]
        self.started = False
        """Whether its first token has come."""
        self._token_ids: list[int] = []

    def push(self, events: Sequence[TokenEvent]) -> GenerationEnd | None:
        """Send in one response what the tokens add (streaming), or keep it until the last. Returns how the answer ended
        if it did; tokens after that are not looked at."""
        self.started = True
        for event in events:
            delta = self._generation.push(event)
            self._texts.append(delta.text)
            self._token_ids.append(event.token_id)
            if delta.finish_reason is not None:
                break
        if delta.finish_reason is None and not self._prepared.stream:
            return None
        answer = Answer(
            "".join(self._texts),
            tuple(self._token_ids),
            delta.cumulative_logprob,
            len(self._prepared.request.prompt_token_ids),
            delta.finish_reason,
        )
        self._texts.clear()
        self._token_ids.clear()
        self.channel.send(encode_answer(answer, self._flags), final=answer.finish_reason is not None)
        if answer.finish_reason is None:
            return None
        return GenerationEnd(answer.finish_reason, engine_knows=event.finish_reason is not None)


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
        self._turns: deque[int] = deque()  # requests that wait, in the order they are asked about; others drop out
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
            stopped = any(isinstance(message, EngineStopped) for message in messages)
        for stream in list(self._streams.values()):
            self._withdraw(stream, ShuttingDown("the model was unloaded before the request finished"))

    def _take(self) -> list[object]:
        """Wait for a message, then take all that are there."""
        messages: list[object] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._outbox.get(timeout=CANCEL_SWEEP_S if self._streams else None))
            while True:
                messages.append(self._outbox.get_nowait())
        return messages

    def _handle(self, messages: Iterable[object]) -> None:
        """Handle what has come since the last time. Usually that is one iteration of the engine; when the engine is the
        faster one, a stream's tokens of several iterations go out in one response, so that nobody falls ever further
        behind."""
        tokens: dict[int, list[TokenEvent]] = {}
        stats: EngineStats | None = None
        for message in messages:
            if isinstance(message, ResponseStream):
                self._streams[message.request_id] = message
                self._turns.append(message.request_id)
            elif isinstance(message, list):
                self._sort(message, tokens)
            elif isinstance(message, EngineStats):
                stats = message
            elif isinstance(message, Rejected):
                self._fail(message.channel, message.error)
        for request_id, events in tokens.items():
            self._answer(request_id, events)
        if stats is not None:
            self._guard(lambda: self._metrics.update(stats), "metrics could not be updated")

    def _sort(self, events: Iterable[Event], tokens: dict[int, list[TokenEvent]]) -> None:
        """Put tokens with the others of their request; deliver errors, after the tokens before them."""
        for event in events:
            if isinstance(event, TokenEvent):
                tokens.setdefault(event.request_id, []).append(event)
            elif isinstance(event, Failed):
                self._answer(event.request_id, tokens.pop(event.request_id, []))
                if (stream := self._streams.pop(event.request_id, None)) is not None:
                    self._fail(stream.channel, event.error)

    def _answer(self, request_id: int, events: Sequence[TokenEvent]) -> None:
        stream = self._streams.get(request_id)
        if stream is None or not events:
            return  # answered already: a stop string, a client that went away
        try:
            end = stream.push(events)
        except BaseException as error:  # no text can be made of its tokens, or nothing sent: this request ends, no other
            logger.exception("request %d could not be answered", request_id)
            self._withdraw(stream, ResponderFailed(f"the answer could not be sent ({type(error).__name__}: {error})"))
            return
        if end is not None:
            del self._streams[request_id]
            if not end.engine_knows:
                self._abort(request_id)
            self._count(end.reason.value)

    def _abort_cancelled(self) -> None:
        """Ask about every request that has begun to be answered, about the oldest others (they may hold blocks already),
        and about some of those that wait, in turns."""
        others = (stream for stream in self._streams.values() if not stream.started)
        oldest = list(itertools.islice(others, CANCEL_SWEEP_OLDEST))
        for stream in [stream for stream in self._streams.values() if stream.started] + oldest:
            self._ask(stream)
        asked = 0
        for _ in range(len(self._turns)):
            if asked == CANCEL_SWEEP_SIZE:
                break
            request_id = self._turns.popleft()
            waiting = self._streams.get(request_id)
            if waiting is None or waiting.started:
                continue
            asked += 1
            if self._ask(waiting):
                self._turns.append(request_id)

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
        self._abort(stream.request_id)
        self._fail(stream.channel, error)

    def _fail(self, channel: Channel, error: FastServeError) -> None:
        self._guard(lambda: channel.fail(error), f"an error could not be delivered: {error}")
        self._count(error.code.value.lower())

    def _count(self, ending: str) -> None:
        self._guard(lambda: self._metrics.count_ending(ending), "an ending could not be counted")

    def _guard(self, action: Callable[[], None], problem: str) -> None:
        """Do what Triton may refuse; whoever waits for an answer must get it all the same."""
        try:
            action()
        except Exception:
            logger.exception(problem)
