"""When what happened to a generation, for clients that ask with ``return_timing``."""

from __future__ import annotations

import json
from collections.abc import Callable

from fastserve.core.events import TokenEvent


class RequestTiming:
    """The timeline of one request. Owned by the responder."""

    def __init__(self, arrived: float, clock: Callable[[], float]) -> None:
        """``arrived``: seconds on ``clock``, which is the engine's."""
        self._arrived = arrived
        self._clock = clock
        self._started = self._first_token = arrived
        self._cached_tokens = 0
        self._num_preemptions: dict[int, int] = {}  # by answer

    def push(self, event: TokenEvent) -> None:
        """Take the next token of an answer; nothing when timing was not asked for."""
        if event.timeline is None:
            return
        if not self._num_preemptions:
            self._started, self._first_token = event.timeline.started, self._clock()
            self._cached_tokens = event.timeline.num_prompt_cached
        self._num_preemptions[event.index] = event.timeline.num_preemptions

    def as_json(self) -> str:
        """An object: milliseconds from the arrival of the request to the first iteration it took part in, to its first token
        and to now, how many tokens of its prompt the prefix cache held, and how often its answers gave up their places."""
        times = {"queue_ms": self._started, "first_token_ms": self._first_token, "total_ms": self._clock()}
        since = {name: round((time - self._arrived) * 1000, 3) for name, time in times.items()}
        counts = {"cached_tokens": self._cached_tokens, "num_preemptions": sum(self._num_preemptions.values())}
        return json.dumps(since | counts)
