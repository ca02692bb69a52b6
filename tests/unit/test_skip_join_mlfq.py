"""FastServe's Algorithm 1, line by line. The shortest step takes 1 s, a token half of it; level i has a quantum of 2^i s."""

from __future__ import annotations

import pytest

from fastserve.core.policy import make_policy
from fastserve.core.policy.skip_join_mlfq import SkipJoinMLFQ
from tests.unit.policy_scenes import PolicyScene, make_costs


def make_scene(starvation_s=100.0, num_levels=8, **costs):
    return PolicyScene(SkipJoinMLFQ(make_costs(**costs), starvation_s=starvation_s, num_levels=num_levels))


def levels(scene, now=0.0):
    return {number: scene.policy.level(sequence, now) for number, sequence in scene.sequences.items()}


def test_the_first_quantum_is_the_shortest_step_and_each_level_has_twice_the_one_above():
    assert [make_scene().policy.quantum_s(level) for level in range(4)] == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(("prompt", "level"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (15, 3), (16, 4), (900, 7)])
def test_a_new_job_skips_to_the_highest_level_whose_quantum_covers_its_first_token(prompt, level):
    scene = make_scene()
    scene.add(1, prompt)
    assert levels(scene) == {1: level}


def test_what_a_prefix_cache_holds_of_a_prompt_does_not_count():
    scene = make_scene()
    sequence = scene.add(1, 8)
    scene.end(1)
    sequence.num_cached = 7
    scene.policy.add(sequence, 0.0)
    assert scene.policy.level(sequence, 0.0) == 0


def test_a_prompt_in_several_chunks_joins_by_the_time_of_all_of_them():
    scene = make_scene(max_batched_tokens=4)
    scene.add(1, 8)  # 2 steps' base and 8 tokens: 5 s
    assert levels(scene) == {1: 3}


def test_a_job_that_used_up_its_quantum_sinks_one_level_to_its_end():
    scene = make_scene()
    scene.add(1)
    scene.run(1)
    scene.add(2, 2)
    assert levels(scene) == {1: 1, 2: 1}
    assert scene.order() == [1, 2]
    scene.run(2)  # 1.5 s of 2 s
    assert (levels(scene), scene.order()) == ({1: 1, 2: 1}, [1, 2])
    scene.run(1)  # 1 s of 2 s
    assert levels(scene) == {1: 1, 2: 1}
    scene.run(1)
    assert (levels(scene), scene.order()) == ({1: 2, 2: 1}, [2, 1])


def test_a_job_is_charged_for_its_own_tokens_and_not_for_its_neighbours():
    scene = make_scene()
    scene.add(1, 3)
    scene.run(1, took=500.0)
    assert levels(scene, now=500.0) == {1: 2}  # 2 s of 2 s, once


def test_no_job_sinks_before_its_step_has_brought_a_token():
    scene = make_scene(starvation_s=5.0)
    scene.add(1, 10)
    scene.run(1, now=5.0, tokens=4)  # 2.5 s of the top's 1 s
    assert levels(scene, now=5.0) == {1: 0}
    scene.run(1, now=6.0, tokens=6)
    assert levels(scene, now=6.0) == {1: 1}


def test_the_last_level_is_never_left_downwards():
    scene = make_scene(num_levels=2)
    scene.add(1)
    scene.run(1, steps=50)
    assert levels(scene) == {1: 1}


def test_jobs_are_taken_from_high_to_low_and_first_in_first_out_in_a_level():
    scene = make_scene()
    for number, prompt in ((1, 8), (2, 2), (3, 1), (4, 2), (5, 1), (6, 8)):
        scene.add(number, prompt, now=float(number))
    assert scene.order(now=6.0) == [3, 5, 2, 4, 1, 6]


def test_who_holds_blocks_is_known_in_the_same_order_from_both_ends():
    scene = make_scene(starvation_s=5.0)
    for number, prompt in ((1, 8), (2, 8), (3, 4), (4, 4), (5, 1), (6, 1), (7, 8), (8, 8)):
        scene.add(number, prompt, now=number * 0.1)
    for number, now in ((2, 1.0), (1, 1.1), (3, 6.0), (5, 6.1), (4, 6.2), (6, 6.3), (7, 6.4)):
        scene.run(number, now=now)
    scene.policy.preempted(scene.sequences[2])
    holders = {scene.sequences[number]: None for number in (1, 3, 4, 5, 6)}
    for now in (6.4, 7.0, 11.15, 20.0):
        expected = [number for number in scene.order(now) if scene.sequences[number] in holders]
        assert [sequence.request.request_id for sequence in scene.policy.among(holders, now)] == expected
        assert [sequence.request.request_id for sequence in scene.policy.among(holders, now, reverse=True)] == expected[::-1]


def test_a_job_that_lost_its_blocks_is_promoted_when_it_would_have_been_with_them():
    scene = make_scene(starvation_s=5.0)
    for number in (1, 2, 3):
        scene.add(number, 8, now=0.0)
    for number in (1, 2, 3):
        scene.run(number, now=float(number), took=1.0)
    for number in (3, 1):
        scene.policy.preempted(scene.sequences[number])
    promoted = {now: [number for number, level in levels(scene, now).items() if level == 0] for now in (6.9, 7.0, 8.0, 9.0)}
    assert promoted == {6.9: [], 7.0: [1], 8.0: [1, 2], 9.0: [1, 2, 3]}
    scene.add(4, now=8.5)
    assert scene.order(now=9.0) == [1, 2, 4, 3]


def test_a_job_that_has_waited_as_long_as_alpha_is_promoted_to_the_top():
    scene = make_scene(starvation_s=5.0)
    scene.add(1, 8, now=0.0)
    scene.add(2, 1, now=3.0)
    assert scene.order(now=4.999) == [2, 1]
    assert (scene.order(now=5.0), levels(scene, now=5.0)) == ([2, 1], {1: 0, 2: 0})
    scene.add(3, 1, now=6.0)
    assert scene.order(now=6.0) == [2, 1, 3], "it came to the top at 5 s"


@pytest.mark.parametrize("name", ["skip_join_mlfq", "priority"])
def test_alpha_can_be_configured_also_inside_a_class(name):
    scene = PolicyScene(make_policy(name, make_costs(), inner="skip_join_mlfq", starvation_s=5.0))
    scene.add(1, 8, now=0.0)
    scene.add(2, 1, now=4.0)
    scene.add(3, 1, now=6.0)
    assert scene.order(now=4.999) == [2, 3, 1]
    assert scene.order(now=6.0) == [2, 1, 3]


def test_a_promoted_job_has_the_top_levels_quantum_and_sinks_from_there():
    scene = make_scene(starvation_s=5.0)
    scene.add(1, 8, now=0.0)
    scene.run(1, now=5.0, took=1.0)
    assert levels(scene, now=6.0) == {1: 1}


def test_waiting_begins_again_with_every_step():
    scene = make_scene(starvation_s=5.0)
    scene.add(1, 8, now=0.0)
    scene.add(2, 8, now=0.0)
    scene.run(1, now=3.0, took=1.0)
    assert levels(scene, now=8.999) == {1: 3, 2: 0}
    assert levels(scene, now=9.0) == {1: 0, 2: 0}
    assert scene.order(now=9.0) == [2, 1]


def test_the_time_a_step_takes_is_not_waiting():
    scene = make_scene(starvation_s=5.0)
    scene.add(1, 8, now=0.0)
    scene.run(1, now=1.0, took=50.0)
    assert levels(scene, now=51.0) == {1: 3}


def test_a_preempted_job_keeps_its_level_and_is_promoted_like_any_other():
    scene = make_scene(starvation_s=5.0)
    scene.add(1, 8)
    scene.policy.preempted(scene.sequences[1])
    assert levels(scene, now=1.0) == {1: 3}
    assert levels(scene, now=5.0) == {1: 0}


def test_the_next_schedule_time_is_when_those_above_have_sunk_to_the_level():
    scene = make_scene()
    scene.add(1)
    scene.add(2, 2)
    scene.add(3, 8)
    # Job 1 has quanta of 1 + 2 + 4 s before it stands at level 3, job 2 has 2 + 4 s; two jobs run at a time.
    assert scene.policy.next_schedule_s(scene.sequences[3], 2, now=0.0) == (7.0 + 6.0) / 2
    assert scene.policy.next_schedule_s(scene.sequences[2], 2, now=0.0) == 1.0 / 2
    assert scene.policy.next_schedule_s(scene.sequences[1], 2, now=0.0) == 0.0


def test_the_next_schedule_time_is_the_promotion_when_that_comes_first():
    scene = make_scene(starvation_s=5.0)
    scene.add(1)
    scene.add(3, 8)
    assert scene.policy.next_schedule_s(scene.sequences[3], 1, now=3.0) == 2.0
    assert scene.policy.next_schedule_s(scene.sequences[3], 1, now=9.0) == 0.0
