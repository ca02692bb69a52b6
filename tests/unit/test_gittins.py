"""The defining properties of the Gittins index, and of the policy that learns what it needs from answers."""

from __future__ import annotations

import random

import pytest

from fastserve.core.policy.gittins import LENGTH_EDGES, GittinsIndex
from fastserve.core.policy.output_lengths import OutputLengths, geometric_edges
from fastserve.core.policy.srpt_oracle import ShortestRemainingFirst
from tests.unit.policy_scenes import PolicyScene, make_costs

UNIT_EDGES = tuple(range(41))
"""Bins of one token each, so that nothing is rounded."""


NEVER = 1e9
"""Patience so long that waiting does not count."""


def make_scene(**settings):
    """Answers of all lengths are worth the same unless ``brevity`` is given."""
    return PolicyScene(GittinsIndex(make_costs(0.0, 1.0), **({"brevity": 0.0} | settings)))


def learn(scene, lengths, prompt=1, took=1.0):
    """Let answers of these lengths end, each ``took`` seconds after it arrived."""
    for number, length in enumerate(lengths, 10_000):
        sequence = scene.add(number, prompt)
        sequence.num_computed, sequence.output_token_ids = prompt + length - 1, [1] * length
        scene.policy.charge(sequence, 1, 0.0, took)
        scene.end(number)


def add_answer(known, length, completed=True):
    """Tell ``known`` of an answer: the bins it went through, and where it ended if it was ``completed``."""
    for index in range(known.bin_of_length(length) if completed else known.bin_of_age(length)):
        known.passed(index)
    if completed:
        known.ended(length)


def index_by_age(lengths, ages):
    known = OutputLengths(UNIT_EDGES, keep=1.0, prior_weight=1e-9)
    for length in lengths:
        add_answer(known, length)
    known.refresh()
    return [known.gittins_index(known.bin_of_age(age), 1000, 0.0, 1.0) for age in ages]


def test_when_all_answers_are_of_one_length_the_index_is_one_over_what_remains():
    assert index_by_age([20] * 10, [0, 10, 19]) == pytest.approx([1 / 20, 1 / 10, 1.0])


def test_it_is_the_best_ratio_of_the_chance_to_end_to_the_work_expected():
    # One token: 3/4 for 1. Ten: 1 for 3/4 * 1 + 1/4 * 10. The better is the first; after it only nine tokens are left.
    assert index_by_age([1, 1, 1, 10], [0, 1]) == pytest.approx([3 / 4, 1 / 9])


def test_under_an_increasing_hazard_the_index_grows_with_age_so_nobody_overtakes():
    indices = index_by_age(range(1, 31), range(30))  # uniform lengths: the longer it has run, the sooner it ends
    assert indices == sorted(indices)


def test_under_a_decreasing_hazard_the_index_falls_with_age_so_the_least_served_goes_first():
    lengths = [length for length in range(1, 39) for _ in range(round(10_000 / length**2.5))]
    indices = index_by_age(lengths, range(12))
    assert indices == sorted(indices, reverse=True)


def test_work_that_is_known_counts_in_full():
    known = OutputLengths(UNIT_EDGES, prior_weight=1e-9)
    add_answer(known, 10)
    known.refresh()
    assert known.gittins_index(0, 1000, 30.0, 2.0) == pytest.approx(1 / (30 + 20))


def test_a_limit_ends_what_else_would_go_on():
    known = OutputLengths(UNIT_EDGES, prior_weight=1e-9)
    add_answer(known, 30)
    known.refresh()
    assert known.gittins_index(0, 5, 0.0, 1.0) == pytest.approx(1 / 5)


def test_answers_that_were_cut_short_count_only_as_far_as_they_got():
    known = OutputLengths(UNIT_EDGES, keep=1.0, prior_weight=1e-9)
    for length, completed in ((5, False), (5, False), (10, True), (5, True)):
        add_answer(known, length, completed)
    known.refresh()
    # A quarter of those that drew a fifth token ended with it; all that drew a tenth ended with that.
    assert known.gittins_index(4, 1000, 0.0, 1.0) == pytest.approx(1 / 4)
    assert known.gittins_index(5, 1000, 0.0, 1.0) == pytest.approx(1 / 5)


def test_old_answers_are_forgotten():
    known = OutputLengths(UNIT_EDGES, keep=0.9, prior_weight=1e-6)
    for length in [2] * 100 + [30] * 200:
        add_answer(known, length)
    known.refresh()
    assert known.gittins_index(0, 1000, 0.0, 1.0) == pytest.approx(1 / 30, rel=1e-3)


def test_forgetting_for_a_long_time_stays_exact():
    known = OutputLengths(UNIT_EDGES, keep=0.5, prior_weight=1e-9)
    for _ in range(2000):
        add_answer(known, 7)
        known.refresh()
    assert known.gittins_index(0, 1000, 0.0, 1.0) == pytest.approx(1 / 7)


def test_without_any_answer_the_least_served_goes_first():
    known = OutputLengths(LENGTH_EDGES)
    indices = [known.gittins_index(known.bin_of_age(age), 10**6, 0.0, 1.0) for age in (0, 10, 100, 1000)]
    assert indices == sorted(indices, reverse=True)


def test_a_prior_speaks_where_little_was_seen_and_falls_silent_where_much_was():
    everything = OutputLengths(UNIT_EDGES, prior_weight=1e-9)
    add_answer(everything, 10)
    everything.refresh()
    special = OutputLengths(UNIT_EDGES, prior=everything)
    assert special.gittins_index(0, 1000, 0.0, 1.0) == pytest.approx(1 / 10)
    for _ in range(1000):
        add_answer(special, 2)
    special.refresh()
    assert special.gittins_index(0, 1000, 0.0, 1.0) == pytest.approx(1 / 2, rel=0.01)


def test_edges_grow_by_the_ratio_and_cover_the_last():
    assert geometric_edges(1, 1.5, 10) == (0, 1, 2, 3, 5, 8, 12)


def test_every_length_has_a_bin_and_the_next_age_is_in_the_same_or_the_next():
    known = OutputLengths((0, 1, 2, 4, 8))
    assert [known.bin_of_length(length) for length in (1, 2, 3, 4, 5, 8, 99)] == [0, 1, 2, 2, 3, 3, 3]
    assert [known.bin_of_age(age) for age in (0, 1, 2, 3, 4, 7, 8, 99)] == [0, 1, 2, 2, 3, 3, 3, 3]


def test_with_lengths_known_the_policy_is_shortest_remaining_time_first():
    scene, rng = make_scene(patience=NEVER), random.Random(0)
    learn(scene, [30_000] * 100)  # no answer ends before its limit
    works = [2**power for power in range(1, 13)]
    rng.shuffle(works)
    oracle = PolicyScene(ShortestRemainingFirst(make_costs(0.0, 1.0), dict(enumerate(works))))
    for number, work in enumerate(works):
        scene.add(number, max_tokens=work)
        oracle.add(number)
    assert scene.order() == oracle.order() == sorted(range(len(works)), key=works.__getitem__)


def test_the_order_is_of_arrival_when_hazards_increase():
    scene = make_scene(patience=NEVER)
    learn(scene, [length for length in range(1, 301) for _ in range(3)])
    for number in range(5):
        scene.add(number, now=float(number))
    scene.run(0, now=10.0, steps=40)
    scene.run(1, now=10.0, steps=10)
    assert scene.order(now=10.0) == [0, 1, 2, 3, 4]


def test_the_order_is_of_least_service_when_hazards_decrease():
    scene = make_scene(patience=NEVER)
    learn(scene, [length for length in range(1, 2000) for _ in range(round(4000 / length**2))])
    for number, steps in enumerate((60, 3, 20)):
        scene.add(number)
        scene.run(number, steps=steps)
    scene.add(3)
    assert scene.order() == [3, 1, 2, 0]


def test_a_long_prompt_waits_behind_a_short_one_until_it_is_computed():
    scene = make_scene()
    learn(scene, [20] * 200)
    scene.add(1, 2000)
    scene.add(2, 20)
    assert scene.order() == [2, 1]
    scene.run(1, tokens=1990)
    assert scene.order() == [1, 2]


def test_what_is_lost_by_preemption_is_work_again():
    scene = make_scene()
    learn(scene, [20] * 200)
    sequence = scene.add(1, 2000)
    scene.run(1)
    scene.add(2, 20)
    assert scene.order() == [1, 2]
    sequence.num_computed = 0
    scene.policy.preempted(sequence)
    assert scene.order() == [2, 1]


def test_the_longer_a_sequence_waits_the_more_it_counts():
    scene = make_scene(patience=60.0)  # times the mean completion time, 1 s
    learn(scene, [20] * 500)
    learn(scene, [20] * 500, prompt=21)
    scene.add(1, 21, now=0.0)  # 40 s of work: index 1/40
    scene.add(2, 1, now=0.0)
    assert scene.order(now=0.0) == [2, 1]
    scene.add(3, 1, now=100.0)
    assert scene.order(now=101.0)[-1] == 3, "after 100 s the first counts 1 + 100/60 times"


def test_patience_grows_with_the_time_that_answers_take():
    scene = make_scene(patience=60.0)
    learn(scene, [20] * 500, took=1000.0)
    learn(scene, [20] * 500, prompt=21, took=1000.0)
    scene.add(1, 21, now=0.0)
    scene.add(3, 1, now=100.0)
    assert scene.order(now=101.0) == [3, 1]


def test_nobody_waits_for_ever_and_before_any_answer_has_ended_waiting_counts_already():
    scene = make_scene()
    scene.add(1, 2000, now=0.0)
    scene.add(2, 20, now=0.0)
    assert scene.order(now=0.0) == [2, 1]
    scene.add(3, 20, now=1e6)
    assert scene.order(now=1e6) == [1, 2, 3]


def test_short_answers_are_worth_more_the_greater_brevity_is():
    def ratio(brevity):
        known = OutputLengths(UNIT_EDGES, prior_weight=1e-9, brevity=brevity)
        for length in (4, 16):
            add_answer(known, length)
        known.refresh()
        # Of 4 tokens half end, of 16 all: 1/2 * 4^-b for 4 tokens, 1/2 * (4^-b + 16^-b) for 10.
        return known.gittins_index(0, 1000, 0.0, 1.0)

    assert ratio(0.0) == pytest.approx(1 / 8)
    assert ratio(1.0) == pytest.approx(1 / 2 * 1 / 4 / 4)
    assert ratio(0.5) == pytest.approx(1 / 2 * 1 / 2 / 4)


def test_brevity_lets_prompts_that_get_short_answers_go_before_those_with_as_much_work():
    def order(brevity):
        scene = make_scene(brevity=brevity, patience=NEVER)
        learn(scene, [10] * 300, prompt=500)
        learn(scene, [400] * 300, prompt=20)
        scene.add(1, 20)  # 20 + 400
        scene.add(2, 500)  # 500 + 10
        return scene.order()

    assert (order(0.0), order(0.25)) == ([1, 2], [2, 1])


def test_answers_teach_how_long_they_are_before_they_end():
    scene = make_scene(patience=NEVER)
    learn(scene, [10] * 100)
    for number in range(300):  # most answers are long, but none of these has ended yet
        scene.add(number)
        scene.run(number, steps=100)
    learn(scene, [10])  # brings the indices up to date
    lengths = scene.policy._lengths
    lengths.refresh()
    assert lengths.gittins_index(lengths.bin_of_age(9), 10**6, 0.0, 1.0) < 0.3, "of those that drew 9 tokens most went on"


def test_what_goes_on_beyond_all_that_was_seen_is_taken_to_end_soon_and_so_it_is_served_and_teaches():
    known = OutputLengths(LENGTH_EDGES)
    for length in list(range(8, 16)) * 100:
        add_answer(known, length)
    known.refresh()
    new, beyond = (known.gittins_index(known.bin_of_age(age), 10**6, 0.0, 1.0) for age in (0, 16))
    assert beyond > new


def test_answers_are_learned_apart_for_prompts_of_different_length():
    scene = make_scene()
    learn(scene, [3] * 100, prompt=200)
    learn(scene, [900] * 100, prompt=20)
    scene.add(1, 20)
    scene.add(2, 200)
    for number in (1, 2):
        scene.run(number)
    assert scene.order() == [2, 1]


def test_a_newly_learned_distribution_reaches_waiting_sequences_step_by_step():
    scene = make_scene(patience=NEVER)
    scene.add(1, 20)
    scene.add(2, 200)
    assert scene.order() == [1, 2]
    learn(scene, [2] * 400, prompt=200)
    learn(scene, [5000] * 400, prompt=20)
    scene.add(3, 30_000)
    scene.run(3, steps=10, tokens=1)  # each brings one bucket up to date
    assert scene.order()[:2] == [2, 1]


def test_an_answer_that_reached_its_own_limit_says_only_that_it_was_longer():
    scene = make_scene(patience=NEVER)
    for number in range(200):
        scene.add(number, max_tokens=5)
        scene.run(number, steps=5)
        scene.end(number)
    lengths = scene.policy._lengths
    assert lengths.gittins_index(lengths.bin_of_age(4), 10**6, 0.0, 1.0) < 0.5
