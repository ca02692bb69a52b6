"""How far apart the responses of streams are on a busy server.

A response costs the client, the server and the thread that answers much the same whether it carries one token or ten, and often
all of them share the model's cores. So tokens of many streams wait for the next ones, for less time than a reader would notice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

SENDING_SHARE = 0.025
"""Of a core, that the answering thread may take before tokens wait. A response costs the client and the server several times what
it costs that thread."""
FEW = 4
"""Streams whose tokens never wait."""
_NEWEST = 0.05
"""Weight of the newest measurement in the mean cost of a response."""


@dataclasses.dataclass(slots=True)
class Held:
    """What was computed of one request and not handed to its stream yet. ``since``: seconds, when the first of it came;
    ``may_wait``: whether all of it may wait for more."""

    since: float
    may_wait: bool = True
    events: list[Any] = dataclasses.field(default_factory=list)


class ResponsePace:
    """Learns what a response costs. Owned by the responder."""

    def __init__(self, longest_s: float = 0.0) -> None:
        """``longest_s``: that a token may wait; 0: none ever does."""
        self._longest_s = longest_s
        self._cost_s = 0.0

    def interval(self, num_streams: int) -> float:
        """Seconds from one response of a stream to the next when ``num_streams`` are answered: so many that those beyond
        :data:`FEW` take :data:`SENDING_SHARE` of a core, at most ``longest_s``."""
        return min(self._longest_s, max(0, num_streams - FEW) * self._cost_s / SENDING_SHARE)

    def sent(self, num_responses: int, seconds: float) -> None:
        """So many responses, at least one, took ``seconds`` of processor time."""
        self._cost_s += _NEWEST * (seconds / num_responses - self._cost_s)
