"""Calls that wait for a worker, in the order they came; a worker takes as many as fit one batch."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from fastserve.functions.wire import Call

Origin = TypeVar("Origin", bound=Hashable)


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingCall(Generic[Origin]):
    """``origin``: where its answer goes."""

    origin: Origin
    call: Call


class CallQueue(Generic[Origin]):
    """Thread-safe. A call is in it until it is taken, dropped, or handed back by :meth:`close`: exactly one of these."""

    def __init__(self, batch_size: int) -> None:
        """``batch_size``: texts in a batch; a call with more is taken alone."""
        self._batch_size = batch_size
        self._waiting: OrderedDict[tuple[Origin, int], WaitingCall[Origin]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, calls: Iterable[WaitingCall[Origin]]) -> bool:
        """Add calls that came together, so that one worker may take them all. False: the queue is closed, none was added."""
        with self._changed:
            if self._closed:
                return False
            for item in calls:
                self._waiting[item.origin, item.call.call_id] = item
                self._changed.notify()
            return True

    def take(self) -> list[WaitingCall[Origin]] | None:
        """Wait for calls; the oldest, and those after it that have its parameters and fit its batch. None: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            _, first = self._waiting.popitem(last=False)
            batch, size = [first], len(first.call.texts)
            for item in self._waiting.values():
                if size >= self._batch_size:
                    break
                if size + len(item.call.texts) <= self._batch_size and _same(item.call.parameters, first.call.parameters):
                    batch.append(item)
                    size += len(item.call.texts)
            for item in batch[1:]:
                del self._waiting[item.origin, item.call.call_id]
            return batch

    def drop(self, origin: Origin, call_id: int) -> None:
        """Nobody waits for this call; it may be gone already."""
        with self._changed:
            self._waiting.pop((origin, call_id), None)

    def drop_all(self, origin: Origin) -> None:
        """Nobody waits for any call of ``origin``."""
        self._remove(lambda item: item.origin == origin)

    def close(self) -> list[WaitingCall[Origin]]:
        """Nothing is taken or added any more; the calls that still waited. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return self._remove(lambda item: True)

    def _remove(self, chosen: Callable[[WaitingCall[Origin]], bool]) -> list[WaitingCall[Origin]]:
        with self._changed:
            removed = [item for item in self._waiting.values() if chosen(item)]
            for item in removed:
                del self._waiting[item.origin, item.call.call_id]
            return removed


def _same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Equal in type too: 1, 1.0 and true are different parameters."""
    return one == other and repr(sorted(one.items())) == repr(sorted(other.items()))
