"""Sends requests: in an open loop when they are due, in a closed loop when the one before is answered."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from fastserve.errors import FastServeError
from fastserve.tools.bench.samples import Sample
from fastserve.tools.client import GenerateClient, GenerateRequest, RequestFailed, ServerUnreachable
from fastserve.tools.encoder_client import EncoderClient, EncoderRequest

UNFINISHED = "INCOMPLETE"
Ask = Callable[[int, float], Sample]
"""Sends the request of that number, which is due at that time, and returns when it has ended; from any thread."""
Seen = Callable[[Sample], None]
"""Called on the caller's thread for each request that has ended."""


class Clock(Protocol):
    def now(self) -> float: ...
    def wait_until(self, at: float) -> None: ...


class WallClock:
    """``time.monotonic``, as the clients' arrival times are."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, at: float) -> None:
        time.sleep(max(0.0, at - self.now()))


def ask_generator(client: GenerateClient, request: GenerateRequest, started: float, clock: Clock) -> Sample:
    """One stream to its end; what fails is in the sample."""
    arrivals: list[tuple[float, int]] = []
    input_tokens, finished, ended = None, False, started
    try:
        with client.stream(request) as responses:
            for response in responses:
                ended = response.arrival
                if tokens := 1 if response.num_output_tokens is None else response.num_output_tokens:
                    arrivals.append((response.arrival, tokens))
                input_tokens = response.num_input_tokens or input_tokens
                finished = finished or response.finish_reason is not None
    except FastServeError as error:
        return _failed(started, clock.now(), error)
    if not finished:
        return Sample(started, clock.now(), error=UNFINISHED, message="the stream ended without a finish_reason")
    return Sample(started, ended, tuple(arrivals), input_tokens)


def ask_encoder(client: EncoderClient, model: str, request: EncoderRequest, started: float, clock: Clock) -> Sample:
    """One answer; what fails is in the sample."""
    try:
        client.infer(model, request)
    except FastServeError as error:
        return _failed(started, clock.now(), error)
    ended = clock.now()
    return Sample(started, ended, ((ended, 0),))


def closed_loop(ask: Ask, count: int, concurrency: int, clock: Clock, seen: Seen) -> list[Sample]:
    """``count`` requests from ``concurrency`` users, each of whom sends the next one when the last has ended. Its threads are
    daemons: Ctrl-C need not wait."""
    numbers, lock = itertools.count(), threading.Lock()
    ended: queue.SimpleQueue[Sample | BaseException] = queue.SimpleQueue()

    def user() -> None:
        while True:
            with lock:
                number = next(numbers)
            if number >= count:
                return
            ended.put(_caught(ask, number, clock.now()))

    for _ in range(min(concurrency, count)):
        threading.Thread(target=user, daemon=True).start()
    return [_take(ended, seen) for _ in range(count)]


def open_loop(ask: Ask, due: Sequence[float], clock: Clock, seen: Seen) -> list[Sample]:
    """A request at each of ``due``, seconds from now, ascending, whatever became of the others."""
    ended: queue.SimpleQueue[Sample | BaseException] = queue.SimpleQueue()
    samples: list[Sample] = []
    begin = clock.now()
    for number, at in enumerate(due):
        clock.wait_until(begin + at)
        threading.Thread(target=lambda *which: ended.put(_caught(ask, *which)), args=(number, begin + at), daemon=True).start()
        while not ended.empty():
            samples.append(_take(ended, seen))
    samples += [_take(ended, seen) for _ in range(len(due) - len(samples))]
    return samples


def _caught(ask: Ask, number: int, due: float) -> Sample | BaseException:
    try:
        return ask(number, due)
    except BaseException as error:  # raised again where the samples are taken
        return error


def _take(ended: queue.SimpleQueue[Sample | BaseException], seen: Seen) -> Sample:
    sample = ended.get()
    if isinstance(sample, BaseException):
        raise sample
    seen(sample)
    return sample


def _failed(started: float, ended: float, error: FastServeError) -> Sample:
    if isinstance(error, RequestFailed):
        return Sample(started, ended, error=error.status, message=error.message)
    kind = "UNREACHABLE" if isinstance(error, ServerUnreachable) else type(error).__name__
    return Sample(started, ended, error=kind, message=str(error))
