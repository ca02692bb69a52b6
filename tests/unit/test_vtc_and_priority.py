"""Fair shares between tenants, and classes of urgency with another policy inside."""

from __future__ import annotations

import pytest

from fastserve.core.policy.fcfs import FirstComeFirstServed
from fastserve.core.policy.gittins import GittinsIndex
from fastserve.core.policy.priority import PriorityClasses
from fastserve.core.policy.srpt_oracle import ShortestRemainingFirst
from fastserve.core.policy.vtc import VirtualTokenCounter
from fastserve.core.scheduler import Scheduler
from fastserve.errors import UnsupportedFeature
from tests.doubles import make_engine, make_request
from tests.unit.policy_scenes import PolicyScene, make_costs


def make_vtc():
    return PolicyScene(VirtualTokenCounter())


def test_tenants_take_turns_however_much_each_sends():
    scene = make_vtc()
    for number in range(6):
        scene.add(number, 10, tenant="greedy")
    scene.add(6, 10, tenant="modest")
    scene.add(7, 10, tenant="modest")
    assert scene.order() == [0, 6, 1, 7, 2, 3, 4, 5]


def test_a_tenant_with_long_prompts_gets_fewer_turns():
    scene = make_vtc()
    for number in range(3):
        scene.add(number, 30, tenant="long")
    for number in range(3, 9):
        scene.add(number, 10, tenant="short")
    assert scene.order() == [0, 3, 4, 5, 1, 6, 7, 8, 2]


def test_a_prompts_token_counts_once_and_an_outputs_twice():
    scene = make_vtc()
    scene.add(1, 10, tenant="ada")
    scene.run(1, tokens=4)
    scene.run(1)
    assert scene.policy.counter("ada") == 10.0
    scene.run(1, steps=3)
    assert scene.policy.counter("ada") == 16.0


def test_who_was_served_most_comes_last_and_what_has_begun_goes_on():
    scene = make_vtc()
    scene.add(1, 10, tenant="ada")
    scene.add(3, 10, tenant="bob")
    scene.run(1, steps=50)
    scene.run(3)
    scene.add(2, 10, tenant="ada")
    scene.add(4, 10, tenant="bob")
    assert scene.order() == [1, 3, 4, 2]


def test_a_tenant_that_comes_back_cannot_spend_what_it_did_not_use():
    scene = make_vtc()
    scene.add(1, 10, tenant="busy")
    scene.run(1, steps=500)
    scene.add(2, 10, tenant="new")
    assert scene.policy.counter("new") == scene.policy.counter("busy")


def test_a_tenant_that_leaves_and_comes_back_keeps_its_debt():
    scene = make_vtc()
    scene.add(1, 10, tenant="idle")
    scene.add(2, 10, tenant="busy")
    scene.run(2, steps=500)
    debt = scene.policy.counter("busy")
    scene.end(2)
    scene.add(3, 10, tenant="busy")
    assert scene.policy.counter("busy") == debt
    assert scene.order() == [1, 3]


def test_after_a_pause_everybody_starts_from_the_last_tenants_counter():
    scene = make_vtc()
    scene.add(1, 10, tenant="ada")
    scene.run(1, steps=50)
    scene.end(1)
    scene.add(2, 10, tenant="bob")
    assert scene.policy.counter("bob") == scene.policy.counter("ada") == 108.0


def test_tenants_that_are_gone_are_forgotten_in_time():
    scene = make_vtc()
    scene.add(0, tenant="busy")
    for number in range(1, 5000):
        scene.add(number, tenant=f"tenant {number}")
        scene.run(number)
        scene.run(0, steps=2)
        scene.end(number)
    assert len(scene.policy._retired) < 200


def test_over_time_tenants_that_always_wait_get_equal_service():
    scene = make_vtc()
    sizes = {"ada": 50, "bob": 5}
    number = 0
    for tenant in sizes:
        for _ in range(2000):
            scene.add(number, sizes[tenant], tenant=tenant)
            number += 1
    for _ in range(1000):
        first = next(scene.policy.ordered(0.0)).request.request_id
        scene.run(first)
        scene.end(first)
    assert abs(scene.policy.counter("ada") - scene.policy.counter("bob")) <= 2 * max(sizes.values())


def test_victims_are_asked_of_those_that_have_begun_and_of_those_that_have_not():
    scene = make_vtc()
    for number, tenant in enumerate(("ada", "ada", "bob", "bob")):
        scene.add(number, 10, tenant=tenant)
    scene.run(3)
    assert scene.order() == [3, 0, 1, 2]
    backwards = scene.policy.among({scene.sequences[number] for number in (3, 0, 2)}, 0.0, reverse=True)
    assert [sequence.request.request_id for sequence in backwards] == [2, 0, 3]


def test_a_lower_class_goes_first_and_the_inner_policy_rules_inside():
    lengths = {1: 9, 2: 3, 3: 9, 4: 3}
    scene = PolicyScene(PriorityClasses(lambda: ShortestRemainingFirst(make_costs(), lengths)))
    for number, priority in ((1, 5), (2, 5), (3, -1), (4, -1)):
        scene.add(number, priority=priority)
    assert scene.order() == [4, 3, 2, 1]
    backwards = scene.policy.among(set(scene.sequences.values()), 0.0, reverse=True)
    assert [sequence.request.request_id for sequence in backwards] == [1, 2, 3, 4]


def test_the_inner_policy_is_told_everything():
    scene = PolicyScene(PriorityClasses(lambda: GittinsIndex(make_costs(0.0, 1.0))))
    for number in range(100):
        scene.add(number, priority=3)
        scene.run(number, steps=5)
        scene.end(number)
    sequence = scene.add(1000, 2000, priority=3)
    scene.run(1000)
    scene.add(1001, 20, priority=3)
    assert scene.order() == [1000, 1001]
    sequence.num_computed = 0
    scene.policy.preempted(sequence)
    assert scene.order() == [1001, 1000]


def test_a_priority_is_refused_by_name_where_the_policy_knows_no_classes():
    scheduler: Scheduler = make_engine().scheduler
    with pytest.raises(UnsupportedFeature, match=r"^priority: got 3; it needs policy priority"):
        scheduler.add(make_request(1, [1], priority=3), 0.0)
    assert len(scheduler) == 0
    make_engine(policy="priority").scheduler.add(make_request(1, [1], priority=3), 0.0)


def test_first_come_first_served_forgets_nobody_and_favours_nobody():
    scene = PolicyScene(FirstComeFirstServed())
    for number in (3, 1, 2):
        scene.add(number)
    scene.run(1, steps=100)
    scene.policy.preempted(scene.sequences[3])
    assert scene.order() == [3, 1, 2]
    scene.end(1)
    backwards = scene.policy.among(set(scene.sequences.values()), 0.0, reverse=True)
    assert [sequence.request.request_id for sequence in backwards] == [2, 3]
