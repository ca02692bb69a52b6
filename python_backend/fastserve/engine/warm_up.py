"""The first run of an engine, before any client's: it is much slower than those that follow."""

from __future__ import annotations

from typing import Protocol

from fastserve.core.events import Failed
from fastserve.engine.engine_thread import RequestT, RequestT_contra, ServedEngine

WARM_UP_REQUEST_ID = -1


class CountingEngine(ServedEngine[RequestT_contra], Protocol[RequestT_contra]):
    """An engine whose counters can start again."""

    def reset_counters(self) -> None: ...


def warm_up(engine: CountingEngine[RequestT], request: RequestT) -> None:
    """Run one request to its end; nothing of it stays, in no counter either. Raises what it failed with."""
    events = engine.submit(request)
    while engine.has_work:
        events += engine.step()
    for event in events:
        if isinstance(event, Failed):
            raise event.error
    engine.reset_counters()
