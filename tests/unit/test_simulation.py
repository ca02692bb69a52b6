"""The simulator: the real scheduler under a cost model, exact where it can be worked out by hand."""

from __future__ import annotations

import random

import pytest

from fastserve.core.step_work import StepCosts
from fastserve.core.swapper import Tier, Transfer, TransferEnded
from fastserve.simulator.link import Link, SimulatedClock
from fastserve.simulator.simulation import Machine, simulate
from fastserve.simulator.summary import CLASS_BOUNDS, MEASURES, class_names, row
from fastserve.simulator.workload import Job, arrive, clip, synthetic_jobs, take

MACHINE = Machine(StepCosts(1.0, 0.1), max_num_seqs=2, max_batched_tokens=10, max_model_len=101)
POLICIES = ("fcfs", "skip_join_mlfq", "gittins", "vtc", "srpt_oracle")


def ignore():
    """Nobody watches."""


def run(jobs, policy="fcfs", machine=MACHINE):
    return simulate(jobs, policy, machine, ignore)


def test_a_request_alone_takes_its_steps_and_each_costs_its_base_and_its_tokens():
    done = run([Job(15, 3, arrival_s=5.0)])
    (served,) = done.served
    assert done.steps == 4  # chunks of 10 and 5 tokens, then two more tokens
    assert served.ttft_s == pytest.approx(2.0 + 1.0 + 0.5 + 1.0 - 1.0)
    assert served.jct_s == pytest.approx((1 + 1.0) + (1 + 0.5) + 2 * 1.1)
    assert served.normalized_latency_s == pytest.approx(served.jct_s / 3)


def test_sequences_that_run_together_share_the_steps_base():
    done = run([Job(1, 5), Job(1, 5)])
    assert [served.jct_s for served in done.served] == pytest.approx([5 * 1.2] * 2)


def test_a_request_waits_for_a_place_and_then_runs():
    done = run([Job(1, 5), Job(1, 5), Job(1, 1)])
    assert done.served[2].jct_s == pytest.approx(5 * 1.2 + 1.1)


def test_with_true_lengths_known_the_short_answer_goes_first():
    first, second = (run([Job(1, 30), Job(1, 30), Job(1, 1)], policy).served[2].jct_s for policy in ("fcfs", "srpt_oracle"))
    assert second == pytest.approx(1.2) and second < first


def test_the_machine_sleeps_until_the_next_arrival():
    done = run([Job(1, 1), Job(1, 1, arrival_s=1000.0)])
    assert (done.seconds, done.steps) == (pytest.approx(1001.1), 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_gets_all_of_its_tokens_under_every_policy(policy):
    machine = Machine(StepCosts(0.006, 0.0015), max_num_seqs=4, max_batched_tokens=64, max_model_len=513, kv_tokens=1024)
    jobs = arrive(
        clip(synthetic_jobs(60, random.Random(1)), 512),
        1.0,
        machine.cost_model(),
        pattern="gamma",
        random_=random.Random(2),
    )
    finished = []
    done = simulate(jobs, policy, machine, lambda: finished.append(1))
    assert len(finished) == len(done.served) == len(jobs)
    for served in done.served:
        assert served.job.arrival_s < served.first_token_s <= served.finished_s <= done.seconds
        shortest = machine.costs.base_s * served.job.output_tokens
        assert served.jct_s >= shortest


def test_a_pool_that_is_too_small_for_all_makes_some_compute_again():
    jobs = [Job(40, 50)] * 2
    assert run(jobs, machine=MACHINE).preemptions == 0
    small = Machine(StepCosts(1.0, 0.1), max_num_seqs=2, max_batched_tokens=10, max_model_len=101, kv_tokens=112)
    assert run(jobs, machine=small).preemptions > 0


SMALL = {"costs": StepCosts(1.0, 0.1), "max_num_seqs": 4, "max_batched_tokens": 10, "max_model_len": 101, "kv_tokens": 208}


def swapping(preemption, link_bytes_per_s=16e3):
    """Four requests in a pool that holds two and a half of them; a block takes a second unless the link is faster."""
    machine = Machine(**SMALL, preemption=preemption, link_bytes_per_s=link_bytes_per_s, kv_bytes_per_token=1000)
    return run([Job(20 + 3 * number, 50) for number in range(4)], machine=machine)


@pytest.mark.parametrize("preemption", ["proactive", "reactive"])
def test_what_is_swapped_is_not_computed_again_and_its_bytes_are_counted(preemption):
    done = swapping(preemption)
    assert done.preemptions == 0
    assert done.swapped_bytes > 0 and done.swapped_bytes % (2 * 16 * 1000) == 0, "what went out came back"
    assert done.peak_blocks <= 208 / 16


def test_a_faster_link_is_waited_for_less():
    slow, fast = swapping("reactive"), swapping("reactive", 16e9)
    assert slow.swap_wait_s == pytest.approx(slow.swapped_bytes / 16e3)
    assert 0 < fast.swap_wait_s < 1e-3
    assert slow.seconds > fast.seconds


def test_beside_the_steps_copies_are_waited_for_less():
    assert swapping("proactive").swap_wait_s < swapping("reactive").swap_wait_s


def test_transfers_go_one_after_the_other_and_waiting_moves_the_clock():
    clock = SimulatedClock(10.0)
    link = Link(clock, 2.0)
    link.start([Transfer(1, Tier.HOST, True, (1, 2), (0, 1)), Transfer(2, Tier.HOST, False, (3,), (2,))])
    assert link.ended(wait=False) == []
    assert link.ended(wait=True) == [TransferEnded(1, 4.0)]
    assert (clock.now, link.waited_s) == (14.0, 4.0)
    clock.now = 20.0
    assert link.ended(wait=True) == [TransferEnded(2, 2.0)]
    assert (clock.now, link.waited_s) == (20.0, 4.0)


def test_the_same_seed_gives_the_same_run():
    def once():
        jobs = arrive(synthetic_jobs(30, random.Random(3)), 0.9, costs, pattern="poisson", random_=random.Random(3))
        return row("gittins", 0.9, run(clip(jobs, 100), "gittins"))

    costs = MACHINE.cost_model()
    assert once() == once()


def test_a_row_has_every_measure_also_by_class():
    done = run([Job(1, 1), Job(80, 5), Job(2, 70)])
    report = row("fcfs", 0.5, done)
    assert {key: report[key] for key in ("policy", "load", "requests", "preemptions", "swapped_bytes")} == {
        "policy": "fcfs",
        "load": 0.5,
        "requests": 3,
        "preemptions": 0,
        "swapped_bytes": 0,
    }
    assert report["output_tokens_per_s"] == pytest.approx(76 / done.seconds)
    assert {name: found["requests"] for name, found in report["by_prompt_tokens"].items()} == {"1-64": 2, "65-256": 1}
    assert {name: found["requests"] for name, found in report["by_output_tokens"].items()} == {"1-64": 2, "65-256": 1}
    for measure in MEASURES:
        assert set(report[measure]) == {"mean", "p50", "p95", "p99"}
        assert report[measure]["p99"] == max(MEASURES[measure](served) for served in done.served)
        assert report["by_output_tokens"]["65-256"][measure]["mean"] == MEASURES[measure](done.served[2])


def test_classes_cover_all_lengths():
    assert class_names() == ["1-64", "65-256", "257-1024", "1025+"]
    assert len(class_names()) == len(CLASS_BOUNDS) + 1


def test_a_small_trace_is_drawn_from_again_and_a_large_one_is_cut():
    jobs = [Job(1, 1), Job(2, 2)]
    drawn = take(jobs, 5, random.Random(0))
    assert drawn[:2] == jobs and len(drawn) == 5 and set(drawn) <= set(jobs)
    assert take(jobs, 1, random.Random(0)) == jobs[:1]
