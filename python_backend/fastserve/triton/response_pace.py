"""How far apart the responses of streams are on a busy server.

A response costs the client, the server and the thread that answers much the same whether it carries one token or ten, and often
all of them share the model's cores. So tokens of many streams wait for the next ones, for less time than a reader would notice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

SENDING_SHARE = 0.05
"""Of the answering thread's time, that sending may take before tokens wait. It is the smaller part of what a response costs."""
_NEWEST = 0.1
"""Weight of the newest measurement in the mean cost of a response."""


@dataclasses.dataclass(slots=True)
class Held:
    """What was computed of one request and not handed to its stream yet. ``since``: seconds, when the first of it came."""

    since: float
    events: list[Any] = dataclasses.field(default_factory=list)


class ResponsePace:
    """Learns what a response costs. Owned by the responder."""

    def __init__(self, longest_s: float = 0.0) -> None:
        """``longest_s``: that a token may wait; 0: none ever does."""
        self.longest_s = longest_s
        self._cost_s = 0.0

    def interval(self, num_streams: int) -> float:
        """Seconds from one response of a stream to the next when ``num_streams`` are answered: so many that sending takes
        :data:`SENDING_SHARE` of the time, at most ``longest_s``."""
        return min(self.longest_s, num_streams * self._cost_s / SENDING_SHARE)

    def sent(self, num_responses: int, seconds: float) -> None:
        """So many responses, at least one, took ``seconds``."""
        cost = seconds / num_responses
        self._cost_s += (_NEWEST if self._cost_s else 1.0) * (cost - self._cost_s)
