"""Preemption without losing work, through the engine: who gives way is swapped out, comes back and goes on where it was."""

from __future__ import annotations

import pytest

from fastserve.core.invariants import violations
from fastserve.core.plan import StepPlan
from fastserve.core.sequence import SequenceStatus
from fastserve.core.step_limits import StepLimits
from fastserve.core.swapper import Tier, TransferEnded
from fastserve.errors import DeadlineExceeded, StepFailed
from tests.doubles import FakeClock, collect, make_engine, make_request, run_to_end
from tests.hashing_runner import HashingRunner

PROMPTS = {number: [number] * (4 + number) for number in range(1, 4)}
"""Of unlike lengths, so that not all need a new block in the same iteration."""


class ManualCopier:
    """Says that a transfer has ended when the test lets it, or when it must because the engine waits."""

    def __init__(self, copier):
        self.copier = copier
        self.begun = []
        self.let_go = False
        self.waits = 0

    def start(self, transfers):
        self.begun += transfers

    def ended(self, *, wait):
        self.waits += wait
        if not (wait or self.let_go):
            return []
        ended, self.begun = self.begun, []
        for transfer in ended:
            self.copier.tiers.copy(transfer)
        return [TransferEnded(transfer.number, 0.001) for transfer in ended]


def make_scene(*, proactive, host=100, file=0, num_blocks=10, **options):
    """An engine whose pool holds two of three requests, and its copier."""
    num_slots = {Tier.HOST: host, Tier.FILE: file}
    engine = make_engine(num_blocks=num_blocks, max_num_seqs=4, num_slots=num_slots, proactive=proactive, **options)
    engine._transfers._copier = copier = ManualCopier(engine._transfers._copier)
    return engine, copier


def submit_all(engine, numbers=PROMPTS, **params):
    for number in numbers:
        assert engine.submit(make_request(number, PROMPTS[number], max_tokens=20, **params)) == []


def step_until(engine, condition, events=None):
    """Steps until the condition holds; returns the events."""
    events = [] if events is None else events
    for _ in range(200):
        if condition():
            return events
        events += engine.step()
        assert violations(engine.scheduler) == []
    raise AssertionError("it never was so")


def expected(numbers=PROMPTS):
    """What the requests get with a pool for all of them."""
    return run_to_end(make_engine(), [make_request(number, PROMPTS[number], max_tokens=20) for number in numbers])


def tokens(outcomes):
    return {number: outcome.token_ids for number, outcome in outcomes.items()}


@pytest.mark.parametrize("proactive", [False, True])
def test_who_has_tokens_to_hand_over_is_told_before_the_engine_waits_for_copies(proactive):
    engine, copier = make_scene(proactive=proactive)
    told, ended = [], copier.ended

    def watched(*, wait):
        assert told or not wait, "the tokens of the iteration before wait for copies"
        return ended(wait=wait)

    engine.before_wait, copier.ended = lambda: told.append(True), watched
    submit_all(engine)
    step_until(engine, lambda: told.clear() or engine._transfers.in_flight or copier.waits)
    for number in PROMPTS if proactive else ():
        engine.abort(number)  # nothing but copies is left
    while engine.has_work:
        told.clear()
        engine.step()
    assert copier.waits > 0


@pytest.mark.parametrize("proactive", [False, True])
@pytest.mark.parametrize("tier", Tier)
def test_swapped_sequences_get_the_same_tokens_and_nothing_is_computed_twice(proactive, tier):
    engine, _ = make_scene(proactive=proactive, host=100 * (tier is Tier.HOST), file=100 * (tier is Tier.FILE))
    outcomes = run_to_end(engine, [make_request(number, PROMPTS[number], max_tokens=20) for number in PROMPTS])
    assert tokens(outcomes) == tokens(expected())
    counts = engine.scheduler.swapper.counts
    assert counts.outs == counts.ins > 0
    assert counts.file_moves == (counts.outs + counts.ins) * (tier is Tier.FILE)
    assert engine.scheduler.num_preemptions == 0
    assert sum(batch.num_tokens for batch in engine._runner.batches) == sum(len(prompt) + 20 - 1 for prompt in PROMPTS.values())


def test_with_the_tiers_full_who_gives_way_is_computed_again():
    engine, _ = make_scene(proactive=True, host=1)
    outcomes = run_to_end(engine, [make_request(number, PROMPTS[number], max_tokens=20) for number in PROMPTS])
    assert tokens(outcomes) == tokens(expected())
    assert (engine.scheduler.swapper.counts.outs, engine.scheduler.num_preemptions > 0) == (0, True)


def test_reactive_an_iteration_waits_for_the_copies_that_make_room_for_it():
    engine, copier = make_scene(proactive=False)
    submit_all(engine)
    step_until(engine, lambda: engine.scheduler.swapper.stored)
    assert copier.waits == 1
    assert not engine.scheduler.swapper.in_flight
    assert len(engine._runner.batches[-1].past_seqlens) == 2, "the others ran in the same iteration"


def test_proactive_the_others_run_while_copies_are_in_flight():
    engine, copier = make_scene(proactive=True)
    submit_all(engine)
    step_until(engine, lambda: engine.scheduler.swapper.in_flight)
    runs = len(engine._runner.batches)
    events = engine.step()
    assert events and len(engine._runner.batches) == runs + 1
    assert (copier.waits, bool(copier.begun)) == (0, True)


def test_when_nothing_can_run_without_a_copy_the_engine_waits_for_it():
    engine, copier = make_scene(proactive=True)
    submit_all(engine)
    step_until(engine, lambda: not engine.has_work)
    assert copier.waits > 0
    assert engine.stats().swap_waits > 0


def test_a_sequence_comes_back_ahead_of_its_turn_when_there_is_room():
    engine, copier = make_scene(proactive=True, num_blocks=40)
    scheduler = engine.scheduler
    submit_all(engine, (1, 2))
    engine.step()
    second = scheduler.sequences[1]
    copier.start(scheduler.begin_swaps(StepPlan((), swapped_out=(second,))))
    copier.let_go = True
    scheduler.limits = StepLimits(max_num_seqs=1, max_batched_tokens=16)
    step_until(engine, lambda: scheduler.swapper.arriving(second))
    engine.step()
    assert (second.status, len(scheduler.sequences)) == (SequenceStatus.RUNNING, 2), "the first has not ended"
    assert copier.waits == 0
    assert [chunk.sequence.request.request_id for chunk in scheduler.plan(0.0).chunks] == [1]


@pytest.mark.parametrize("proactive", [False, True])
def test_no_plan_moves_sequences_in_and_out(proactive):
    engine, copier = make_scene(proactive=proactive)
    copier.let_go = True
    plans = []
    plan = engine.scheduler.plan
    engine.scheduler.plan = lambda now: plans.append(plan(now)) or plans[-1]
    submit_all(engine)
    step_until(engine, lambda: not engine.has_work)
    assert any(plan.swapped_out for plan in plans) and any(plan.swapped_in for plan in plans)
    assert not any(plan.swapped_out and plan.swapped_in for plan in plans)


def test_planning_changes_nothing():
    engine, _ = make_scene(proactive=True)
    submit_all(engine)
    scheduler = engine.scheduler
    step_until(engine, lambda: scheduler.plan(0.0).swapped_out)
    before = (scheduler.pool.blank_blocks(), scheduler.swapper.room(), list(scheduler.holders))
    assert scheduler.plan(0.0) == scheduler.plan(0.0)
    assert (scheduler.pool.blank_blocks(), scheduler.swapper.room(), list(scheduler.holders)) == before


@pytest.mark.parametrize("retryable", [False, True])
def test_a_failed_run_leaves_transfers_as_they_are(retryable):
    runner = HashingRunner()
    engine, _ = make_scene(proactive=True, runner=runner)
    submit_all(engine)
    events = step_until(engine, lambda: engine.scheduler.plan(0.0).swapped_out)
    runner.failures.append(StepFailed("injected", retryable=retryable))
    events += engine.step()
    assert violations(engine.scheduler) == []
    step_until(engine, lambda: not engine.has_work, events)
    outcomes = collect(events)
    assert [outcome.num_endings for outcome in outcomes.values()] == [1, 1, 1]
    fine = {number: outcome.token_ids for number, outcome in outcomes.items() if isinstance(outcome.endings[0], StepFailed)}
    assert bool(fine) != retryable
    assert all(tokens(expected())[number][: len(found)] == found for number, found in fine.items())
    assert engine.scheduler.pool.num_used == 0


def test_who_is_aborted_on_its_way_frees_blocks_and_slots_with_the_next_iteration_after_its_copy():
    engine, copier = make_scene(proactive=True)
    submit_all(engine)
    step_until(engine, lambda: engine.scheduler.swapper.moving)
    (moving,) = engine.scheduler.swapper.moving
    used = engine.scheduler.pool.num_used
    engine.abort(moving.request.request_id)
    assert violations(engine.scheduler) == []
    assert engine.scheduler.pool.num_used == used, "the copy still reads them"
    copier.let_go = True
    engine.step()
    assert engine.scheduler.swapper.room()[Tier.HOST] == 100
    assert violations(engine.scheduler) == []


def test_the_last_request_aborted_on_its_way_leaves_nothing_behind():
    engine, _ = make_scene(proactive=True)
    submit_all(engine)
    step_until(engine, lambda: engine.scheduler.swapper.moving)
    for number in PROMPTS:
        engine.abort(number)
    assert engine.has_work, "a copy is still in flight"
    engine.step()
    assert (engine.has_work, engine.scheduler.pool.num_used) == (False, 0)
    assert engine.scheduler.swapper.room()[Tier.HOST] == 100


def test_a_deadline_that_passes_in_a_tier_frees_its_slots_within_an_iteration():
    clock = FakeClock()
    engine, copier = make_scene(proactive=True, clock=clock)
    copier.let_go = True
    submit_all(engine, (1, 2))
    engine.submit(make_request(3, PROMPTS[3], max_tokens=20, deadline=50.0))
    step_until(engine, lambda: engine.scheduler.swapper.stored)
    (swapped,) = engine.scheduler.swapper.stored
    assert swapped.request.request_id == 3
    clock.advance(51.0)
    (failed,) = engine.step()
    assert isinstance(failed.error, DeadlineExceeded)
    assert engine.scheduler.swapper.room()[Tier.HOST] == 100


def test_the_numbers_tell_what_moved():
    engine, copier = make_scene(proactive=True, host=50)
    copier.let_go = True
    submit_all(engine)
    step_until(engine, lambda: engine.scheduler.swapper.stored)
    stats = engine.stats()
    blocks = engine.scheduler.swapper.counts.blocks_out
    assert (stats.swapped, stats.swapped_out, stats.swapped_in, stats.preemptions) == (1, 1, 0, 0)
    assert (stats.running, stats.waiting) == (2, 0)
    assert stats.swap_out_bytes == blocks * 4 * 2 * 4  # tokens of a block, key and value, fp32
    assert (stats.blocks_swapped, stats.host_usage) == (blocks, blocks / 50)
    assert stats.pool_usage == engine.scheduler.pool.num_used / 10
