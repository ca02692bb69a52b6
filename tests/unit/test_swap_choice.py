"""FastServe's rules of proactive swapping (section 4.2 of the paper), line by line."""

from __future__ import annotations

import pytest

from fastserve.core.policy.fcfs import FirstComeFirstServed
from fastserve.core.policy.skip_join_mlfq import SkipJoinMLFQ
from fastserve.core.swap_choice import (
    AHEAD_STEPS,
    LONGEST_STAY_S,
    STAY,
    Movable,
    Room,
    SwapPace,
    choose_swaps,
    next_schedule_times,
)
from tests.unit.policy_scenes import PolicyScene, make_costs

STEP_S = 1.0


def make_pace(blocks_per_step=1000):
    pace = SwapPace(num_blocks=100, block_size=16)
    pace.stepped(STEP_S)
    pace.copied(blocks_per_step, STEP_S)
    return pace


def candidates(*pairs, size=10):
    """Of (name, ENST); a name stands for a sequence."""
    return [Movable(name, size, next_s) for name, next_s in pairs]


def choose(resident=(), stored=(), free=0, leaving=0, reserve=0, pace=None, size=10):
    room = Room(free, leaving, reserve)
    return choose_swaps(candidates(*resident, size=size), candidates(*stored, size=size), room, pace or make_pace())


def test_while_the_reserve_is_not_idle_the_largest_enst_goes_out_first():
    resident = [("a", 30.0), ("b", 50.0), ("c", 40.0)]
    assert choose(resident, free=0, reserve=5) == (["b"], [])
    assert choose(resident, free=0, reserve=15) == (["b", "c"], [])
    assert choose(resident, free=0, reserve=1000) == (["b", "c", "a"], [])


def test_blocks_that_are_leaving_already_count_as_idle_and_nothing_more_goes():
    assert choose([("a", 30.0)], free=2, leaving=3, reserve=5) == ([], [])


def test_with_the_reserve_idle_the_smallest_enst_comes_in_first_as_far_as_there_is_room():
    stored = [("a", 30.0), ("b", 10.0), ("c", 20.0)]
    assert choose(stored=stored, free=14, reserve=4) == ([], ["b"])
    assert choose(stored=stored, free=24, reserve=4) == ([], ["b", "c"])
    assert choose(stored=stored, free=100, reserve=4) == ([], ["b", "c", "a"])


def test_who_comes_in_leaves_the_reserve_idle():
    assert choose(stored=[("a", 30.0)], free=13, reserve=4) == ([], [])


def test_nobody_overtakes_the_smallest_enst_that_finds_no_room():
    room = Room(free=8, leaving=0, reserve=0)
    stored = [Movable("large", 20, 5.0), Movable("small", 1, 9.0)]
    assert choose_swaps([], stored, room, make_pace()) == ([], [])


@pytest.mark.parametrize("free", range(0, 60, 7))
@pytest.mark.parametrize("reserve", (0, 5, 20))
def test_nothing_moves_in_and_out_in_one_iteration(free, reserve):
    out, into = choose([("a", 30.0), ("b", 9.0)], [("c", 0.5), ("d", 20.0)], free=free, reserve=reserve)
    assert not (out and into)


def test_one_that_is_needed_soon_takes_the_room_of_the_largest_enst():
    assert choose([("a", 30.0), ("b", 50.0)], [("soon", 1.5)], free=3) == (["b"], [])
    assert choose([("a", 30.0), ("b", 50.0)], [("later", 20.0)], free=3) == ([], [])


def test_who_is_needed_soon_itself_stays():
    assert choose([("a", 0.5)], [("soon", 0.2)], free=3) == ([], [])
    assert choose([("a", 0.5)], free=0, reserve=20) == ([], [])


def test_no_more_moves_than_can_be_copied_beside_an_iteration_but_one_sequence_always_can():
    slow = make_pace(blocks_per_step=15)
    resident = [("a", 300.0), ("b", 500.0), ("c", 400.0)]
    assert choose(resident, free=0, reserve=1000, pace=slow) == (["b"], [])
    assert choose(stored=resident, free=1000, pace=slow) == ([], ["a"])
    assert choose(stored=resident, free=1000, pace=slow, size=40) == ([], ["a"])


def test_the_reserve_holds_what_arrived_of_late_and_what_running_sequences_grow_by():
    pace = SwapPace(num_blocks=1000, block_size=16)
    assert pace.reserve(0) == 0
    assert pace.reserve(32) == AHEAD_STEPS * 2
    for _ in range(200):
        pace.arrived(50)  # 4 blocks an iteration
        pace.stepped(STEP_S)
    assert pace.reserve(0) == pytest.approx(AHEAD_STEPS * 4, abs=1)
    for _ in range(200):
        pace.stepped(STEP_S)
    assert pace.reserve(0) <= 1


def test_the_reserve_is_never_more_than_a_quarter_of_the_pool():
    pace = SwapPace(num_blocks=100, block_size=16)
    pace.arrived(100_000)
    pace.stepped(STEP_S)
    assert pace.reserve(64) == 25


def test_soon_is_the_next_iteration_or_as_long_as_the_copy_takes():
    pace = make_pace(blocks_per_step=10)
    assert pace.horizon_s(5) == pytest.approx(2 * STEP_S)
    assert pace.horizon_s(40) == pytest.approx(STEP_S + 4 * STEP_S)


def test_who_came_in_stays_for_forty_times_as_long_as_its_copy_took_but_no_longer_than_5_s():
    pace = make_pace(blocks_per_step=10)  # a block takes 0.1 s
    assert pace.stay_steps(1) == pytest.approx(0.1 * STAY / STEP_S)
    assert pace.stay_steps(100) == LONGEST_STAY_S / STEP_S
    assert SwapPace(num_blocks=100, block_size=16).stay_steps(10) == 0, "nothing was copied yet"


def test_of_skip_join_mlfq_the_times_are_the_papers():
    scene = PolicyScene(SkipJoinMLFQ(make_costs(), starvation_s=100.0))
    for number, prompt in ((1, 1), (2, 2), (3, 8)):
        scene.add(number, prompt)
    times = next_schedule_times(scene.policy, list(scene.sequences.values()), 2, STEP_S, 0.0)
    assert [times[scene.sequences[number]] for number in (1, 2, 3)] == [0.0, 1.0 / 2, (7.0 + 6.0) / 2]


def test_of_a_policy_that_knows_only_the_order_each_batch_comes_an_iteration_after_the_one_before():
    scene = PolicyScene(FirstComeFirstServed())
    for number in range(5):
        scene.add(number)
    asked = [scene.sequences[number] for number in (4, 0, 2, 1, 3)]
    times = next_schedule_times(scene.policy, asked, 2, 3.0, 0.0)
    assert [times[scene.sequences[number]] for number in range(5)] == [0.0, 0.0, 3.0, 3.0, 6.0]
