"""The thread that owns the engine. Other threads send it messages and read its events from one queue."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from fastserve.core.encoding import EncodingRequest
from fastserve.core.events import Aborted, Event, Failed, is_ending
from fastserve.core.request import Request
from fastserve.engine.stats import EngineStats
from fastserve.errors import EngineDead, FastServeError, ShuttingDown

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", Request, EncodingRequest)
RequestT_contra = TypeVar("RequestT_contra", Request, EncodingRequest, contravariant=True)


class ServedEngine(Protocol[RequestT_contra]):
    """What the thread needs of an engine. Every method is called on the thread and returns what happened; what it raises is
    a bug, after which the engine is never used again."""

    before_wait: Callable[[], None]
    """Called by ``step`` when everything is ready for the model to run, and before it waits for anything else."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def submit(self, request: RequestT_contra) -> list[Event]: ...
    def abort(self, request_id: int, index: int | None = None) -> list[Event]: ...
    def fail_all(self, error: FastServeError) -> list[Event]: ...
    def step(self) -> list[Event]: ...
    def stats(self) -> EngineStats: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Submit(Generic[RequestT]):
    """Inbox: serve this request."""

    request: RequestT


@dataclasses.dataclass(frozen=True, slots=True)
class Abort:
    """Inbox: withdraw a request, or only one of its answers, which has begun."""

    request_id: int
    index: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Shutdown:
    """Inbox: finish what is there for at most ``drain_s`` seconds, fail the rest, end."""

    drain_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStopped:
    """Outbox: the last message; nothing unfinished is left."""


Outgoing = list[Event] | EngineStats | EngineStopped


class EngineThread(Generic[RequestT]):
    """Runs an engine until it is shut down. ``submit``, ``abort`` and ``shutdown`` may be called from any thread and
    never block; events leave through ``outbox`` in the order they happened."""

    def __init__(
        self,
        engine: ServedEngine[RequestT],
        outbox: queue.SimpleQueue[Any],
        *,
        clock: Callable[[], float],
        stats_interval_s: float = 0.25,
    ) -> None:
        """``outbox`` receives :data:`Outgoing` (and whatever else its owner puts there)."""
        self._engine: ServedEngine[RequestT] = engine
        engine.before_wait = self._hand_over
        self._inbox: queue.SimpleQueue[Submit[RequestT] | Abort | Shutdown] = queue.SimpleQueue()
        self._outbox = outbox
        self._clock = clock
        self._stats_interval_s = stats_interval_s
        self._next_stats = 0.0
        self._last_stats = EngineStats()
        self._dead: EngineDead | None = None
        self._open: set[int] = set()  # requests that still owe their client an ending
        self._newest_id = -1
        self._early_aborts: set[int] = set()  # withdrawn before they were submitted: the client was quicker than we
        self._drain_until: float | None = None
        self._computed: list[Event] = []  # not handed over yet
        self._thread = threading.Thread(target=self._main, name="fastserve-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: RequestT) -> None:
        """Serve a request. Ids are unique. An abort may overtake the submit of an id above all earlier ones; one that overtakes
        another submit is lost, and the request is computed for nobody."""
        self._inbox.put(Submit(request))

    def abort(self, request_id: int, index: int | None = None) -> None:
        """``index``: withdraw only this answer, of which a token was seen."""
        self._inbox.put(Abort(request_id, index))

    def shutdown(self, drain_s: float) -> None:
        self._inbox.put(Shutdown(drain_s))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            while not self._finished():
                self._guard(self._turn)
            self._guard(self._end)
        finally:
            self._outbox.put(EngineStopped())

    def _guard(self, action: Callable[[], None]) -> None:
        """Run ``action``; if it meets a bug, answer every request: nobody may wait for what cannot come."""
        try:
            action()
        except Exception as error:
            logger.exception("the engine failed; every request will be refused")
            self._dead = EngineDead(f"the engine failed ({type(error).__name__}: {error}); reload the model")
            # The engine may be what is broken, in the middle of anything: it is not asked and never used again.
            self._emit([Failed(request_id, self._dead) for request_id in sorted(self._open)])
            self._outbox.put(dataclasses.replace(self._last_stats, running=0, waiting=0))

    def _end(self) -> None:
        while not self._inbox.empty():  # what arrived while the last iteration ran
            self._handle(self._inbox.get())
        if self._dead is None:
            self._emit(self._engine.fail_all(ShuttingDown("the model was unloaded before the request finished")))
            self._publish_stats(due=True)

    @property
    def _has_work(self) -> bool:
        return self._dead is None and self._engine.has_work

    def _finished(self) -> bool:
        return self._drain_until is not None and (not self._has_work or self._clock() >= self._drain_until)

    def _turn(self) -> None:
        """Take every message that is there (waiting for one when idle), then run one iteration."""
        if not self._has_work:
            self._publish_stats(due=self._dead is None)
            self._handle(self._inbox.get())
        if not self._inbox.empty():
            self._hand_over()  # what came may take long to take in
        while not self._inbox.empty():
            self._handle(self._inbox.get())
        if self._has_work:
            self._step()
            self._publish_stats(due=self._clock() >= self._next_stats)

    def _step(self) -> None:
        """One iteration. What it computed is handed over when the model runs again and needs no interpreter, not while the next
        iteration is planned, which would have to wait for the thread that answers."""
        self._keep(self._engine.step())
        if not self._engine.has_work:
            self._hand_over()

    def _keep(self, events: list[Event]) -> None:
        """Until the next :meth:`_hand_over`; what was kept before goes first."""
        self._hand_over()
        self._open.difference_update(event.request_id for event in events if is_ending(event))
        self._computed = events

    def _hand_over(self) -> None:
        if self._computed:
            self._outbox.put(self._computed)
            self._computed = []

    def _handle(self, message: Submit[RequestT] | Abort | Shutdown) -> None:
        if isinstance(message, Shutdown):
            self._drain_until = self._clock() + message.drain_s
        elif isinstance(message, Abort):
            self._handle_abort(message)
        else:
            self._handle_submit(message.request)

    def _handle_abort(self, message: Abort) -> None:
        if message.request_id > self._newest_id:
            self._early_aborts.add(message.request_id)
        elif self._dead is None:
            self._emit(self._engine.abort(message.request_id, message.index))

    def _handle_submit(self, request: RequestT) -> None:
        self._newest_id = max(self._newest_id, request.request_id)
        if request.request_id in self._early_aborts:
            self._early_aborts.discard(request.request_id)
            self._emit([Aborted(request.request_id)])
        elif self._dead is not None:
            self._emit([Failed(request.request_id, self._dead)])
        elif self._drain_until is not None:
            self._emit([Failed(request.request_id, ShuttingDown("the model is being unloaded"))])
        else:
            self._open.add(request.request_id)
            self._emit(self._engine.submit(request))

    def _emit(self, events: list[Event]) -> None:
        self._keep(events)
        self._hand_over()

    def _publish_stats(self, *, due: bool) -> None:
        if due:
            self._last_stats = self._engine.stats()
            self._hand_over()
            self._outbox.put(self._last_stats)
            self._next_stats = self._clock() + self._stats_interval_s
