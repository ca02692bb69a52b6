"""From what a client sent to what the engine and the responder need: here texts become tokens.

Short texts are read at once, on Triton's thread (T). Long ones would keep T from everybody else for up to seconds, and grammars
have to be compiled, so these are read by a thread of their own (L).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import queue
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic

import numpy.typing as npt

from fastserve.engine.engine_thread import RequestT
from fastserve.errors import FastServeError, QueueFull, RequestUnreadable
from fastserve.text.guidance import GUIDES
from fastserve.triton.long_texts import LongTexts
from fastserve.triton.responder import Channel, Rejected, ResponseStream

logger = logging.getLogger(__name__)

LONG_BYTES = 4096
"""Requests with more than this are long: reading them takes milliseconds, and answering them may."""

LABELS = "candidate_labels"

_MAY_GUIDE = re.compile("|".join(GUIDES).encode() + rb"|\\u")
"""Found in every JSON text that has one of these keys, which an escape may spell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """One request as Triton gave it to us. ``tensors``: by input name, absent ones left out; strings are bytes objects.
    ``parameters``: Triton's request parameters. ``arrived``: seconds on the engine's clock."""

    channel: Channel
    tensors: Mapping[str, npt.NDArray[Any]]
    parameters: Mapping[str, Any]
    output_names: tuple[str, ...]
    """The outputs the client asked for; all when it named none."""
    arrived: float

    @property
    def is_long(self) -> bool:
        """Whether reading it takes more time than T has."""
        sizes = (
            sum(map(len, tensor.reshape(-1).tolist())) if tensor.dtype.hasobject else tensor.nbytes
            for tensor in self.tensors.values()
        )
        return sum(sizes) * self._readings > LONG_BYTES or self._may_be_guided

    @property
    def _may_be_guided(self) -> bool:
        """Whether a grammar may come with it; true of a few others, too."""
        tensor = self.tensors.get("sampling_parameters")
        if tensor is None:
            return any(name in self.parameters for name in GUIDES)
        return any(_MAY_GUIDE.search(text) for text in tensor.reshape(-1).tolist())

    @property
    def _readings(self) -> int:
        """How often its text is read: once with each label it may get (zero-shot classification), else once."""
        labels = self.tensors.get(LABELS)
        return max(1, labels.size) if labels is not None else 1 + str(self.parameters.get(LABELS, "")).count(",")


Read = Callable[[Received, int], tuple[ResponseStream, RequestT]]
"""What a request asks of the responder and of the engine, under the given id. Raises FastServeError."""


class RequestReader(Generic[RequestT]):
    """Reads requests and sends them on; one that cannot be read is rejected and costs no other."""

    def __init__(
        self,
        read: Read[RequestT],
        outbox: queue.SimpleQueue[Any],
        submit: Callable[[RequestT], None],
        long_texts: LongTexts,
        *,
        max_waiting: int,
    ) -> None:
        """``outbox``: the responder's. ``submit``: the engine's. ``max_waiting``: long requests that may wait for L."""
        self._read: Read[RequestT] = read
        self._outbox = outbox
        self._submit: Callable[[RequestT], None] = submit
        self._long_texts = long_texts
        self._max_waiting = max_waiting
        self._request_ids = itertools.count()
        self._handed_over = self._done = 0  # long requests; each is counted by one thread only: T, L

    def take(self, received: Received) -> None:
        """Called by T. Never raises."""
        waiting = self._handed_over - self._done
        if not received.is_long:
            self._pass_on(received)
        elif waiting < self._max_waiting:
            self._handed_over += 1
            self._long_texts.do(functools.partial(self._pass_on_long, received))
        else:
            full = f"the queue is full: {waiting} long requests, max_queue_size is {self._max_waiting}; try again later"
            self._outbox.put(Rejected(received.channel, QueueFull(full)))

    def _pass_on_long(self, received: Received) -> None:
        try:
            self._pass_on(received)
        finally:
            self._done += 1

    def _pass_on(self, received: Received) -> None:
        try:
            stream, request = self._read(received, next(self._request_ids))
        except FastServeError as error:
            self._outbox.put(Rejected(received.channel, error))
        except Exception as error:  # a bug in reading
            logger.exception("a request could not be read")
            self._outbox.put(Rejected(received.channel, RequestUnreadable(error)))
        else:
            self._outbox.put(stream)  # before the engine can say anything about it
            self._submit(request)
