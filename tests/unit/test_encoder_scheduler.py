"""What an encoder runs next: budgets, turns, and that nobody is left waiting."""

from __future__ import annotations

import pytest

from fastserve.core.encoder_scheduler import EncoderScheduler, padded_length
from fastserve.core.events import Encoded, Failed
from fastserve.core.step_limits import StepLimits
from fastserve.errors import QueueFull, StepFailed
from tests.doubles import make_encoding


def scheduler_of(*requests, max_num_seqs=8, max_batched_tokens=100, max_queue_size=1000, padded=False):
    limits = StepLimits(max_num_seqs, max_batched_tokens)
    scheduler = EncoderScheduler(limits, max_queue_size=max_queue_size, padded=padded)
    for request in requests:
        scheduler.add(request)
    return scheduler


def run(scheduler):
    """Plan and commit one run; returns (request id, index of the sequence) for each sequence, and what ended."""
    plan = scheduler.plan()
    events = scheduler.commit(plan, [sequence.token_ids for sequence in plan.sequences])
    return [(sequence.token_ids[0], sequence.token_ids[1]) for sequence in plan.sequences], events


def runs(scheduler):
    """Every run until nothing is left."""
    found = []
    while len(scheduler):
        found.append(run(scheduler)[0])
    return found


def test_short_texts_share_a_run_in_order_of_arrival():
    scheduler = scheduler_of(*(make_encoding(request_id, 10) for request_id in (4, 2, 7)))
    order, events = run(scheduler)
    assert order == [(4, 0), (2, 0), (7, 0)]
    assert [event.request_id for event in events] == [4, 2, 7]
    assert len(scheduler) == 0 and scheduler.plan().sequences == ()


def test_a_run_takes_no_more_sequences_than_max_num_seqs():
    scheduler = scheduler_of(*(make_encoding(request_id, 2) for request_id in range(5)), max_num_seqs=2)
    assert runs(scheduler) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]


def test_a_run_may_fill_the_token_budget_and_not_exceed_it():
    scheduler = scheduler_of(*(make_encoding(request_id, 25) for request_id in range(5)), max_batched_tokens=100)
    assert [len(order) for order in runs(scheduler)] == [4, 1]


def test_a_sequence_longer_than_the_budget_runs_alone_when_its_turn_comes():
    scheduler = scheduler_of(make_encoding(0, 5), make_encoding(1, 101), make_encoding(2, 5), make_encoding(3, 5))
    assert runs(scheduler) == [[(0, 0)], [(1, 0)], [(2, 0), (3, 0)]]


def test_nothing_overtakes_a_sequence_for_which_there_was_no_room():
    scheduler = scheduler_of(make_encoding(0, 60), make_encoding(1, 60), make_encoding(2, 10))
    assert runs(scheduler) == [[(0, 0)], [(1, 0), (2, 0)]]


def test_windows_are_run_round_by_round():
    scheduler = scheduler_of(make_encoding(0, 10, 10, 10), make_encoding(1, 10), make_encoding(2, 10, 10), max_num_seqs=5)
    assert runs(scheduler) == [[(0, 0), (1, 0), (2, 0), (0, 1), (2, 1)], [(0, 2)]]


def test_a_request_is_answered_with_its_outputs_in_order_when_the_last_one_was_run():
    scheduler = scheduler_of(make_encoding(0, 10, 20, 30), max_batched_tokens=30)
    first, second = run(scheduler)[1], run(scheduler)[1]
    assert first == []
    (event,) = second
    assert isinstance(event, Encoded)
    assert [len(output) for output in event.outputs] == [10, 20, 30]


def test_a_long_document_costs_a_short_text_one_window():
    scheduler = scheduler_of(make_encoding(0, *[90] * 50))
    run(scheduler)
    scheduler.add(make_encoding(1, 10))
    assert [run(scheduler)[0] for _ in range(2)] == [[(0, 1), (1, 0)], [(0, 2)]]


def test_a_document_finishes_although_short_texts_never_stop_coming():
    scheduler = scheduler_of(make_encoding(0, *[90] * 20), max_batched_tokens=100)
    for request_id in range(1, 1000):
        scheduler.add(make_encoding(request_id, 50))
        scheduler.add(make_encoding(request_id + 1000, 50))
        if any(event.request_id == 0 for event in run(scheduler)[1]):
            break
    else:
        pytest.fail("the document starved")
    assert request_id < 300


def test_a_plan_changes_nothing():
    scheduler = scheduler_of(make_encoding(0, 10, 10), make_encoding(1, 10), max_num_seqs=2)
    assert scheduler.plan() == scheduler.plan()
    assert runs(scheduler) == [[(0, 0), (1, 0)], [(0, 1)]]


def test_an_error_in_an_outputs_place_ends_that_request_alone():
    scheduler = scheduler_of(make_encoding(0, 10, 10, 10), make_encoding(1, 10), make_encoding(2, 10, 10), max_num_seqs=6)
    plan = scheduler.plan()
    assert plan.request_ids == (0, 1, 2, 0, 2, 0)
    error = StepFailed("not finite")
    events = scheduler.commit(plan, ["a", "b", "c", error, "d", "e"])
    assert events == [Encoded(1, ("b",)), Failed(0, error), Encoded(2, ("c", "d"))]
    assert len(scheduler) == 0


def test_an_aborted_request_is_not_run_again():
    scheduler = scheduler_of(make_encoding(0, 90, 90), make_encoding(1, 90))
    run(scheduler)
    assert scheduler.abort(0) is True
    assert scheduler.abort(0) is False
    assert runs(scheduler) == [[(1, 0)]]


def test_deadlines_end_requests_in_time_and_ended_requests_do_not_expire():
    scheduler = scheduler_of(
        make_encoding(0, 90, deadline=5.0), make_encoding(1, 90, deadline=3.0), make_encoding(2, 90, deadline=4.0)
    )
    run(scheduler)
    assert scheduler.expired(2.9) == []
    assert scheduler.expired(9.0) == [1, 2]
    assert len(scheduler) == 0


def test_a_full_queue_refuses_with_both_numbers():
    scheduler = scheduler_of(make_encoding(0, 5), make_encoding(1, 5), max_queue_size=2)
    with pytest.raises(QueueFull, match="2 requests, max_queue_size is 2"):
        scheduler.add(make_encoding(2, 5))
    run(scheduler)
    scheduler.add(make_encoding(2, 5))
    assert scheduler.request_ids == [2]


# --- padded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "padded"),
    [(1, 8), (8, 8), (9, 16), (64, 64), (65, 80), (80, 80), (81, 96), (128, 128), (129, 160), (500, 512), (513, 640)],
)
def test_lanes_end_where_the_docstring_says(length, padded):
    assert padded_length(length) == padded


def test_padding_is_bounded_for_every_length():
    for length in range(1, 9000):
        waste = padded_length(length) - length
        assert 0 <= waste <= max(7, length / 4)
        assert padded_length(padded_length(length)) == padded_length(length)


def test_the_oldest_request_decides_which_lengths_run_together():
    scheduler = scheduler_of(
        *(make_encoding(index, length) for index, length in enumerate((20, 70, 24, 66, 17, 100))),
        padded=True,
        max_batched_tokens=200,
    )
    assert runs(scheduler) == [[(0, 0), (2, 0), (4, 0)], [(1, 0), (3, 0)], [(5, 0)]]


def test_padding_counts_as_tokens():
    scheduler = scheduler_of(*(make_encoding(index, 17) for index in range(9)), padded=True, max_batched_tokens=96)
    assert [len(order) for order in runs(scheduler)] == [4, 4, 1]


def test_a_rare_length_is_run_although_common_ones_never_stop_coming():
    scheduler = scheduler_of(make_encoding(0, 20), make_encoding(1, 20), make_encoding(2, 90), padded=True, max_num_seqs=2)
    for request_id in range(3, 12, 2):
        scheduler.add(make_encoding(request_id, 20))
        scheduler.add(make_encoding(request_id + 1, 20))
        if run(scheduler)[0] == [(2, 0)]:
            break
    assert request_id == 5


def test_windows_of_other_lengths_wait_for_a_run_of_their_own():
    scheduler = scheduler_of(make_encoding(0, 30, 30, 10), make_encoding(1, 12), padded=True)
    assert runs(scheduler) == [[(0, 0), (0, 1)], [(1, 0), (0, 2)]]
