"""Random schedules of encoding requests: each is answered with the outputs it would get alone, exactly once, within the
number of runs that the scheduler promises, and no run breaks a budget."""

from __future__ import annotations

import functools
import random
from collections import Counter

import pytest

from fastserve.core.encoder_scheduler import padded_length
from fastserve.core.events import Encoded, is_ending
from fastserve.errors import DeadlineExceeded, FastServeError, QueueFull, StepFailed
from tests.doubles import FakeClock, HashingEncoder, collect, hash_sequence, make_encoder_engine, make_encoding

NUM_REQUESTS = 80
SEEDS = range(30)


class PoisonedEncoder(HashingEncoder):
    """Gives no finite output for one request's sequences, whatever else is in the run."""

    def __init__(self, poisoned):
        super().__init__()
        self.poisoned = poisoned

    def run(self, sequences):
        outputs = super().run(sequences)
        for sequence, output in zip(sequences, outputs, strict=True):
            if sequence.token_ids[0] == self.poisoned:
                output[0] = float("nan")
        return outputs


class Schedule:
    """One random schedule, checked after every step."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.clock = FakeClock()
        self.runner = PoisonedEncoder(self.rng.randrange(NUM_REQUESTS))
        self.max_num_seqs, self.max_batched_tokens = self.rng.choice((1, 4, 16)), self.rng.choice((64, 128, 300))
        self.padded = self.rng.random() < 0.5
        self.engine = make_encoder_engine(
            self.runner,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            max_queue_size=self.rng.choice((8, 1000)),
            padded=self.padded,
            clock=self.clock,
        )
        self.requests, self.events = {}, []
        self.patience = {}
        """By unfinished request: within how many runs its next sequence has to be run."""

    def random_request(self, request_id):
        num_sequences = self.rng.choice((1, 1, 1, 2, 9))
        lengths = [self.rng.choice((2, 5, 17, 20, 64, 100, 400)) for _ in range(num_sequences)]
        deadline = self.clock.now + self.rng.uniform(0.0, 5.0) if self.rng.random() < 0.1 else None
        return make_encoding(request_id, *lengths, deadline=deadline)

    def happen(self, events):
        self.events += events
        for event in events:
            assert is_ending(event)
            self.patience.pop(event.request_id, None)

    def submit(self, request):
        self.requests[request.request_id] = request
        self.patience[request.request_id] = len(self.engine.scheduler) + 1
        self.happen(self.engine.submit(request))

    def step(self):
        before = len(self.runner.runs)
        events = self.engine.step()
        self.happen(events)
        for sequences in self.runner.runs[before : before + 1]:  # not the second try
            self.check_budgets(sequences)
            served = {sequence.token_ids[0] for sequence in sequences}
            for request_id in self.patience:
                joins_again = request_id in served
                self.patience[request_id] = len(self.patience) if joins_again else self.patience[request_id] - 1
                assert self.patience[request_id] > 0, f"request {request_id} waits for longer than it has to"

    def check_budgets(self, sequences):
        lengths = [len(sequence.token_ids) for sequence in sequences]
        assert 1 <= len(lengths) <= self.max_num_seqs
        if self.padded:
            assert len({padded_length(length) for length in lengths}) == 1
            assert len(lengths) == 1 or len(lengths) * max(lengths) <= self.max_batched_tokens
        assert len(lengths) == 1 or sum(lengths) <= self.max_batched_tokens

    def play(self):
        """Returns what became of each request."""
        arrivals = [self.random_request(request_id) for request_id in reversed(range(NUM_REQUESTS))]
        while arrivals or self.engine.has_work:
            self.clock.advance(self.rng.choice((0.0, 0.1, 1.0)))
            for _ in range(min(len(arrivals), self.rng.choice((0, 0, 1, 3, 10)))):
                self.submit(arrivals.pop())
            if self.requests and self.rng.random() < 0.05:
                self.happen(self.engine.abort(self.rng.choice(list(self.requests))))
            if self.rng.random() < 0.05:
                retryable = self.rng.random() < 0.7
                self.runner.failures.append(self.rng.choice((StepFailed("injected", retryable=retryable), MemoryError())))
            if self.engine.has_work:
                self.step()
        return collect(self.events)


@functools.cache
def endings(seed):
    """How often each kind of ending was seen in a schedule, every outcome checked."""
    schedule = Schedule(seed)
    outcomes = schedule.play()
    assert sorted(outcomes) == list(range(NUM_REQUESTS))
    seen = Counter()
    for request_id, outcome in outcomes.items():
        (ending,) = outcome.endings
        if isinstance(ending, Encoded):
            assert request_id != schedule.runner.poisoned
            expected = [hash_sequence(sequence) for sequence in schedule.requests[request_id].sequences]
            assert [tuple(output) for output in ending.outputs] == expected
        else:
            assert ending == "aborted" or isinstance(ending, (DeadlineExceeded, QueueFull, StepFailed))
        seen[type(ending).__name__ if isinstance(ending, (FastServeError, Encoded)) else ending] += 1
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_ends_once_with_the_outputs_it_would_get_alone(seed):
    assert endings(seed).total() == NUM_REQUESTS


def test_the_random_schedules_see_every_kind_of_ending():
    seen = sum((endings(seed) for seed in SEEDS), Counter())
    assert set(seen) == {"Encoded", "aborted", "DeadlineExceeded", "QueueFull", "StepFailed"}
