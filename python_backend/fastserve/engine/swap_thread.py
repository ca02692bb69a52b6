"""The thread that copies blocks between the KV pool and the tiers below it, beside the engine's runs."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from fastserve.core.swapper import Transfer, TransferEnded

logger = logging.getLogger(__name__)


class BlockCopier(Protocol):
    """Who knows where the bytes are; used by the swap thread only."""

    def copy(self, transfer: Transfer) -> None: ...
    def close(self) -> None: ...


class SwapThread:
    """Implements ``core.transfers.Copier`` for the engine thread: transfers go in, and come back when they have ended. The
    thread runs from the first transfer until :meth:`stop`; each transfer is answered, whatever happens to it."""

    def __init__(self, tiers: BlockCopier, clock: Callable[[], float]) -> None:
        """``clock``: seconds, monotonic."""
        self._tiers = tiers
        self._clock = clock
        self._begun: queue.SimpleQueue[Transfer | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[TransferEnded] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, transfers: Sequence[Transfer]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="fastserve-swap", daemon=True)
            self._thread.start()
        for transfer in transfers:
            self._begun.put(transfer)

    def ended(self, *, wait: bool) -> list[TransferEnded]:
        found = [self._ended.get()] if wait else []
        while not self._ended.empty():
            found.append(self._ended.get())
        return found

    def stop(self) -> None:
        """End the thread when it has copied what was begun, and close the tiers."""
        if self._thread is not None:
            self._begun.put(None)
            self._thread.join()
        self._tiers.close()

    def _main(self) -> None:
        while (transfer := self._begun.get()) is not None:
            started, error = self._clock(), None
            try:
                self._tiers.copy(transfer)
            except Exception as problem:  # the engine waits for an answer
                logger.exception("a transfer failed")
                error = f"{type(problem).__name__}: {problem}"
            self._ended.put(TransferEnded(transfer.number, self._clock() - started, error))
