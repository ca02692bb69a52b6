"""Random schedules of generation requests over a real engine, checked after every step: the golden property and "every request
ends exactly once" hold whatever arrives, is aborted, fails or is preempted, under every policy.

To cover a new kind of event: let :func:`tests.random_requests.random_request` or :func:`engine_settings` bring it about (or add
to :data:`DISTURBANCES` what may happen between two steps), count it in :attr:`Schedule.seen` (from a :data:`WATCHERS` entry when
it happens inside a step), and name it in :data:`EVENT_KINDS`, so that the suite fails when it is no longer seen.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from fastserve.config import INNER_POLICIES, POLICIES
from fastserve.core.events import Event
from fastserve.core.invariants import violations
from fastserve.core.request import FinishReason, Request, SamplingParams
from fastserve.core.sequence import SequenceStatus
from fastserve.errors import DeadlineExceeded, FastServeError, QueueFull, RequestTooLong, StepFailed
from tests.beam_schedules import BEAM_EVENT_KINDS, count_beams
from tests.chunk_events import CHUNK_KINDS, PAIR_SECONDS, bounded_chunks, found_blocks
from tests.constraint_doubles import SumConstraint
from tests.doubles import Outcome, TickingClock, collect, make_engine, run_to_end
from tests.random_requests import random_request
from tests.swap_events import SWAP_KINDS, abort_a_swapped_request, check_tiers, fail_the_next_transfer, one_way, random_tiers
from tests.watchful_runner import WatchfulRunner

NUM_REQUESTS = 60
SCHEDULED_POLICIES = tuple(name for name in POLICIES if name != "auto")
"""``auto`` is one of the others."""
EVENT_KINDS = (
    "arrivals",
    "preemptions",
    "preempted siblings",
    "copied blocks",
    "found tokens",
    "evicted blocks",
    "conversations that went on",
    "failed runs",
    "withdrawn answers",
    "completed constraints",
    *BEAM_EVENT_KINDS,
    *CHUNK_KINDS,
    "FinishReason.STOP",
    "FinishReason.LENGTH",
    "aborted",
    "DeadlineExceeded",
    "QueueFull",
    "StepFailed",
    *SWAP_KINDS,
)
"""What a suite of schedules must have seen, under each policy."""


def engine_settings(rng: random.Random) -> dict[str, Any]:
    """Of ``tests.doubles.make_engine``: so little of everything that it runs short."""
    return {
        "num_blocks": rng.choice((36, 44, 80, 120)),
        "max_num_seqs": (most := rng.choice((1, 4, 16))),
        "max_batched_tokens": most + rng.choice((0, 8, 15, 48)),
        "max_queue_size": rng.choice((10, 100)),
        "max_queue_size_per_tenant": rng.choice((0, 8)),
        "pair_s": rng.choice(PAIR_SECONDS),
        "inner": rng.choice(INNER_POLICIES),
        "prefix_cache": rng.choice(("on", "on", "on", "per_tenant", "off")),
        **random_tiers(rng),
    }


class Schedule:
    """One random schedule: an engine, what it was asked, and what became of that."""

    def __init__(self, seed: int, policy: str) -> None:
        self.rng = random.Random(seed)
        self.clock, self.runner = TickingClock(), WatchfulRunner()
        self.engine = make_engine(self.runner, policy=policy, clock=self.clock, **engine_settings(self.rng))
        self.to_come = [random_request(self.rng, request_id, 0.0) for request_id in range(NUM_REQUESTS)]
        self.runner.pool = self.engine.scheduler.pool
        if policy == "priority":
            self.to_come = [dataclasses.replace(request, priority=self.rng.choice((-1, 0, 5))) for request in self.to_come]
        self.requests: dict[int, Request] = {}
        """Those that have arrived."""
        self.outcomes: dict[int, Outcome] = {}
        self.withdrawn: set[tuple[int, int]] = set()
        """Answers that were ended early, by request and index."""
        self.seen: Counter[str] = Counter()
        """How often each kind of event was seen."""

    def run(self) -> Counter[str]:
        """Serve everything, checking after every step; returns :attr:`seen`."""
        while self.to_come or self.engine.has_work:
            self.clock.advance(self.rng.choice((0.0, 0.1, 1.0)))
            for chance, disturb in DISTURBANCES:
                if self.rng.random() < chance:
                    disturb(self)
            if self.engine.has_work:
                with ExitStack() as stack:
                    for watch in WATCHERS:
                        stack.enter_context(watch(self))
                    self.note(self.engine.step())
            assert violations(self.engine.scheduler) == []
            check_constraints(self)
            self.runner.check_contents(self.engine.kv_cache)
            check_order(self)
        assert self.engine.scheduler.pool.num_used == 0
        stats = self.engine.stats()
        self.seen.update({"preemptions": stats.preemptions, "found tokens": stats.prefix_hits})
        self.seen["evicted blocks"] = len(self.runner.contents) - stats.blocks_cached
        check_tiers(self)
        self.seen["arrivals"] = len(self.requests)
        assert sorted(self.outcomes) == list(range(NUM_REQUESTS))
        for request_id, outcome in self.outcomes.items():
            assert outcome.num_endings == 1, f"request {request_id} ended {outcome.num_endings} times"
            self.seen[check_outcome(self, self.requests[request_id], outcome)] += 1
        return self.seen

    def note(self, events: list[Event]) -> None:
        """Every event the engine gives goes through here."""
        collect(events, self.outcomes)


# What may happen between two steps.
def requests_arrive(schedule: Schedule) -> None:
    for _ in range(schedule.rng.choice((1, 3, 10))):
        if schedule.to_come:
            request = schedule.to_come.pop()
            if schedule.rng.random() < 0.2:
                request = go_on(schedule, request)
            schedule.requests[request.request_id] = request
            schedule.note(schedule.engine.submit(request))


def go_on(schedule: Schedule, request: Request) -> Request:
    """The request with what another asked and was answered before its own prompt."""
    ended = [number for number, outcome in schedule.outcomes.items() if outcome.num_endings and outcome.token_ids]
    if not ended:
        return request
    number = schedule.rng.choice(ended)
    said = (*schedule.requests[number].prompt_token_ids, *schedule.outcomes[number].token_ids, *request.prompt_token_ids)
    schedule.seen["conversations that went on"] += 1
    return dataclasses.replace(request, prompt_token_ids=said[:100])


def abort_a_request(schedule: Schedule) -> None:
    if schedule.requests:
        schedule.note(schedule.engine.abort(schedule.rng.choice(list(schedule.requests))))


def withdraw_an_answer(schedule: Schedule) -> None:
    """Of a request that has begun to answer, as if its client had found a stop string."""
    begun = [number for number, outcome in schedule.outcomes.items() if outcome.token_ids]
    if begun:
        request = schedule.requests[schedule.rng.choice(begun)]
        index = schedule.rng.randrange(request.params.n)
        schedule.note(schedule.engine.abort(request.request_id, index))
        schedule.withdrawn.add((request.request_id, index))
        schedule.seen["withdrawn answers"] += 1


def fail_the_next_run(schedule: Schedule) -> None:
    schedule.runner.failures.append(StepFailed("injected", retryable=schedule.rng.random() < 0.7))


DISTURBANCES: tuple[tuple[float, Callable[[Schedule], None]], ...] = (
    (0.6, requests_arrive),
    (0.05, abort_a_request),
    (0.02, abort_a_swapped_request),
    (0.05, withdraw_an_answer),
    (0.05, fail_the_next_run),
    (0.03, fail_the_next_transfer),
)
"""Each with its chance."""


# What is seen of a step from outside it.


@contextmanager
def preempted_siblings(schedule: Schedule) -> Iterator[None]:
    siblings = [sequence for sequence in schedule.engine.scheduler.sequences if sequence.index and sequence.block_table]
    yield
    schedule.seen["preempted siblings"] += sum(sequence.status is SequenceStatus.WAITING for sequence in siblings)


@contextmanager
def copied_blocks(schedule: Schedule) -> Iterator[None]:
    kv_cache = schedule.engine.kv_cache
    copy_blocks = kv_cache.copy_blocks
    kv_cache.copy_blocks = lambda copies: (schedule.seen.update({"copied blocks": len(copies)}), copy_blocks(copies))[1]  # type: ignore[method-assign]
    yield
    del kv_cache.copy_blocks


@contextmanager
def failed_runs(schedule: Schedule) -> Iterator[None]:
    before = len(schedule.runner.failures)
    yield
    schedule.seen["failed runs"] += before - len(schedule.runner.failures)


WATCHERS: tuple[Callable[[Schedule], AbstractContextManager[None]], ...] = (
    preempted_siblings,
    copied_blocks,
    failed_runs,
    found_blocks,
    bounded_chunks,
    lambda schedule: count_beams(schedule.engine.scheduler, schedule.seen),
    one_way,
)


# What must be true.


def check_order(schedule: Schedule) -> None:
    """The order is total, does not change by asking, and is the same from both ends for those that hold blocks or are swapped."""
    scheduler, now = schedule.engine.scheduler, schedule.clock.now
    ordered = list(scheduler.policy.ordered(now))
    assert list(dict.fromkeys(scheduler.policy.ordered(now))) == ordered and len(ordered) == len(scheduler.sequences)
    held = {**scheduler.holders, **scheduler.swapper.stored}
    among = [sequence for sequence in ordered if sequence in held]
    assert list(scheduler.policy.among(held, now)) == among
    assert list(scheduler.policy.among(held, now, reverse=True)) == among[::-1]


def check_constraints(schedule: Schedule) -> None:
    """Every answer's constraint has taken what is committed of it, no more and no less."""
    for sequence in schedule.engine.scheduler.sequences:
        constraint = sequence.constraint
        assert not isinstance(constraint, SumConstraint) or constraint.taken == sequence.output_token_ids


def check_outcome(schedule: Schedule, request: Request, outcome: Outcome) -> str:
    """Holds an outcome against the same request alone; returns the name of its ending."""
    early = [ending for ending in outcome.endings if not isinstance(ending, FinishReason)]
    endings = early or outcome.endings or ["withdrawn"]  # the first answer was, and the others ended by themselves
    name = type(endings[0]).__name__ if isinstance(endings[0], FastServeError) else str(endings[0])
    if early and isinstance(early[0], (QueueFull, RequestTooLong)):
        assert outcome.token_ids == []
        return name
    assert not early or early[0] == "aborted" or isinstance(early[0], (DeadlineExceeded, StepFailed))
    alone = run_alone(request.prompt_token_ids, request.params)
    for index in range(request.params.n):
        found, expected = outcome.answer(index), alone.answer(index)
        if not early and (request.request_id, index) not in schedule.withdrawn:
            assert found.endings == expected.endings
            assert len(found.token_ids) == len(expected.token_ids)
        assert found.token_ids == expected.token_ids[: len(found.token_ids)]
        assert found.logprobs == expected.logprobs[: len(found.token_ids)]
        if isinstance(constraint := request.params.constraint, SumConstraint):
            assert constraint.follows(found.token_ids)
            schedule.seen["completed constraints"] += FinishReason.STOP in found.endings
    schedule.seen["beam searches"] += request.params.num_beams > 1 and not early
    assert outcome.prompt_logprobs == alone.prompt_logprobs[: len(outcome.prompt_logprobs)]
    assert not outcome.token_ids or outcome.prompt_logprobs == alone.prompt_logprobs
    single = run_alone(request.prompt_token_ids, dataclasses.replace(request.params, n=1))
    assert (single.token_ids, single.logprobs) == (alone.token_ids, alone.logprobs)
    assert single.prompt_logprobs == alone.prompt_logprobs
    return name


@functools.lru_cache(maxsize=2 * NUM_REQUESTS)
def run_alone(prompt_token_ids: tuple[int, ...], params: SamplingParams) -> Outcome:
    """One request, a roomy pool, the whole prompt at once, nothing from a cache."""
    engine = make_engine(num_blocks=400, max_batched_tokens=200, prefix_cache="off")
    return run_to_end(engine, [Request(0, prompt_token_ids, params)])[0]


def run_schedules(policy: str, seeds: Iterator[int] | range) -> Counter[str]:
    """Runs a schedule for each seed; returns what they saw. An AssertionError says which seed it was."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        try:
            seen += Schedule(seed, policy).run()
        except AssertionError as error:
            raise AssertionError(f"schedule {seed} under {policy}: {error}") from error
    return seen
