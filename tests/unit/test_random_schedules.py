"""The golden property over random schedules: a request's tokens are the same alone, batched, chunked, preempted and begun with
blocks of the prefix cache, whatever its neighbours do, and every request ends exactly once. ``--schedules N`` says how many;
tests/random_schedules.py holds what is in them."""

from __future__ import annotations

import pytest

from tests.random_schedules import EVENT_KINDS, NUM_REQUESTS, SCHEDULED_POLICIES, run_schedules

ENOUGH = 10
"""Schedules under a policy that see every kind of event."""


@pytest.mark.parametrize("policy", SCHEDULED_POLICIES)
def test_tokens_do_not_depend_on_the_schedule_and_every_request_ends_once(policy, num_schedules, report_events):
    count = -(-num_schedules // len(SCHEDULED_POLICIES))
    first = 1_000_000 * SCHEDULED_POLICIES.index(policy)
    seen = run_schedules(policy, range(first, first + count))
    report_events(policy, count, seen)
    assert seen["arrivals"] == count * NUM_REQUESTS
    for kind in EVENT_KINDS if count >= ENOUGH else ():
        assert seen[kind] > 0, f"no {kind} in {dict(seen)}"
