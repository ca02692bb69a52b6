"""Which sequences of which requests an encoder runs next. Lives on the engine thread; holds no clock.

All unfinished requests stand in one line. A run serves from its front: the next sequence of each request in turn, and when
everyone in the line had a turn, the one after that, until a budget is full. Who was served and has sequences left goes to the
end of the line, where new requests join.

Nobody starves. The front of the line is part of every run, whatever its length, and nobody is ever let in before others: a
request with ``p`` requests before it has its next sequence run within ``p + 1`` runs, whoever comes after it. A document of
many windows holds up a short text by one window a turn, not by all of them; and ``k`` windows are done within ``k`` turns of a
line that the queue bounds, however many short texts arrive.

A graph that pads its sequences to one length ("padded") should be given similar lengths. Then a sequence waits in a lane with
those of about its length, and a run serves one lane: that of the front of the line, so that the argument above holds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import Any

from fastserve.core.admission import Deadlines, check_queue
from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.core.events import Encoded, Event, Failed
from fastserve.core.step_limits import StepLimits
from fastserve.errors import FastServeError

ONE_LANE = 0
"""Where every sequence waits when none is padded."""


def padded_length(length: int) -> int:
    """Tokens up to which a sequence of ``length`` tokens may be padded in a run: the end of its lane.

    Lanes are 8 tokens wide up to 64 and an eighth of a power of two above (65 to 80, 81 to 96, ..., 129 to 160), so at most 7
    tokens or less than a quarter of a sequence is padding.
    """
    width = max(8, (1 << (length - 1).bit_length()) // 8)
    return -(-length // width) * width


@dataclasses.dataclass(slots=True)
class _Open:
    """A request and the outputs of its sequences that were run, in order; owned by the scheduler."""

    request: EncodingRequest
    turn: int = 0
    """Its place in the line: the smallest is the front."""
    lane: int = ONE_LANE
    """Where its next sequence waits."""
    outputs: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderPlan:
    """The sequences of one run and, for each, the request it belongs to. A request's own are in its order."""

    sequences: tuple[TokenSequence, ...]
    request_ids: tuple[int, ...]


class EncoderScheduler:
    """Owns every unfinished encoding request: admits, plans, commits."""

    def __init__(self, limits: StepLimits, *, max_queue_size: int, padded: bool = False) -> None:
        """``limits``: the budgets of one run; a sequence longer than ``max_batched_tokens`` runs alone. ``max_queue_size``:
        unfinished requests accepted. ``padded``: the graph pads, so lengths are gathered and padding counts as tokens."""
        self._limits = limits
        self._padded = padded
        self._max_queue_size = max_queue_size
        self._open: dict[int, _Open] = {}
        self._lanes: dict[int, dict[int, _Open]] = {}  # by lane, by request id; in the order of turns, never empty
        self._turns = itertools.count()
        self._deadlines = Deadlines(self._open)

    def __len__(self) -> int:
        """Unfinished requests."""
        return len(self._open)

    @property
    def request_ids(self) -> Items[int]:
        """Every unfinished request, in order of arrival."""
        return list(self._open)

    def add(self, request: EncodingRequest) -> None:
        """Accept a request. Raises QueueFull."""
        check_queue(len(self._open), self._max_queue_size)
        entry = self._open[request.request_id] = _Open(request)
        self._join_line(entry)
        self._deadlines.add(request.deadline, request.request_id)

    def plan(self) -> EncoderPlan:
        """The next run; empty only when there are no requests. Changes nothing."""
        if not self._open:
            return EncoderPlan((), ())
        front = min(self._lanes, key=lambda lane: next(iter(self._lanes[lane].values())).turn)
        sequences: list[TokenSequence] = []
        request_ids: list[int] = []
        tokens = 0
        for entry, sequence in self._in_turn(front):
            tokens += front if self._padded else len(sequence.token_ids)
            if sequences and tokens > self._limits.max_batched_tokens:
                break
            sequences.append(sequence)
            request_ids.append(entry.request.request_id)
            if len(sequences) == self._limits.max_num_seqs:
                break
        return EncoderPlan(tuple(sequences), tuple(request_ids))

    def _in_turn(self, lane: int) -> Iterator[tuple[_Open, TokenSequence]]:
        """Sequences of one lane: the next of each request, then the one after of each, and so on. Those after are of the same
        lane, too; a request whose next but one is of another has no second turn."""
        for entry in self._lanes[lane].values():
            yield entry, entry.request.sequences[len(entry.outputs)]
        waiting = list(self._lanes[lane].values())
        for ahead in itertools.count(1):
            waiting = [entry for entry in waiting if self._has_in_lane(entry, len(entry.outputs) + ahead)]
            if not waiting:
                return
            for entry in waiting:
                yield entry, entry.request.sequences[len(entry.outputs) + ahead]

    def _has_in_lane(self, entry: _Open, index: int) -> bool:
        sequences = entry.request.sequences
        return index < len(sequences) and self._lane_of(sequences[index]) == entry.lane

    def commit(self, plan: EncoderPlan, outputs: Items[Any]) -> list[Event]:
        """Take the result of a run. ``outputs``: one for each sequence of the plan; an error in an output's place ends that
        request alone. Returns the requests that ended."""
        events: list[Event] = []
        for request_id, output in zip(plan.request_ids, outputs, strict=True):
            entry = self._open.get(request_id)
            if entry is None:
                continue  # another sequence of it in this run was its end
            if isinstance(output, FastServeError):
                self.finish(request_id)
                events.append(Failed(request_id, output))
                continue
            entry.outputs.append(output)
            if len(entry.outputs) == len(entry.request.sequences):
                self.finish(request_id)
                events.append(Encoded(request_id, tuple(entry.outputs)))
            else:
                self._leave_line(entry)
                self._join_line(entry)
        return events

    def abort(self, request_id: int) -> bool:
        """End a request early; False when it has ended already."""
        if request_id not in self._open:
            return False
        self.finish(request_id)
        return True

    def expired(self, now: float) -> list[int]:
        """Ends every request whose deadline has passed and returns their ids."""
        ended = list(self._deadlines.pop_due(now))
        for request_id in ended:
            self.finish(request_id)
        return ended

    def finish(self, request_id: int) -> None:
        """Forget a request; no further sequence of it is run."""
        self._leave_line(self._open.pop(request_id))

    def _join_line(self, entry: _Open) -> None:
        """Put a request at the end of the line, into the lane of its next sequence."""
        entry.turn = next(self._turns)
        entry.lane = self._lane_of(entry.request.sequences[len(entry.outputs)])
        self._lanes.setdefault(entry.lane, {})[entry.request.request_id] = entry

    def _leave_line(self, entry: _Open) -> None:
        lane = self._lanes[entry.lane]
        del lane[entry.request.request_id]
        if not lane:
            del self._lanes[entry.lane]

    def _lane_of(self, sequence: TokenSequence) -> int:
        return padded_length(len(sequence.token_ids)) if self._padded else ONE_LANE
