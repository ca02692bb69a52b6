"""What of a context is counted where layers have sliding windows: the mean over them of what each attends to."""

from __future__ import annotations

import random

import pytest

from fastserve.core.attention_windows import EVERYTHING, AttentionWindows, pairs_of
from fastserve.core.cost_model import CostModel
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts, StepWork, chunk_work
from tests.doubles import make_engine, make_request
from tests.unit.test_scheduler import make_scheduler, step

MISTRAL = (4096,) * 4
GEMMA = (64, 64, None, 64, 64, None)
MIXED = (1, 20, 20, 300, None, None, None)
COSTS = StepCosts(0.006, 0.0015, row_s=0.0005, read_s=1e-5, pair_s=1e-6)


def attended(window, position):
    """Positions that the token at ``position`` (counted from 1) attends to in one layer."""
    return range(max(0, position - window) if window else 0, position)


def mean(counts):
    return sum(counts) / len(counts)


def some_windows(rng):
    return [rng.choice((None, 1, 7, 16, 100, 1000)) for _ in range(rng.randrange(1, 8))]


def test_a_chunk_counts_what_each_of_its_tokens_attends_to_and_what_is_read_for_them():
    rng = random.Random(0)
    for _ in range(200):
        layers, start, size = some_windows(rng), rng.randrange(200), rng.randrange(1, 60)
        windows = AttentionWindows.of_layers(layers)
        seen = [[attended(window, start + number) for number in range(1, size + 1)] for window in layers]
        assert windows.pairs(start, size) == pytest.approx(mean([sum(map(len, layer)) for layer in seen]))
        assert windows.reads(start, size) == pytest.approx(mean([len(set().union(*layer)) for layer in seen]))
        assert windows.positions(start + 1) == pytest.approx(mean([len(layer[0]) for layer in seen]))


def test_the_chunks_of_a_text_read_what_each_of_them_does():
    rng = random.Random(1)
    for _ in range(500):
        windows, size, most = AttentionWindows.of_layers(some_windows(rng)), rng.randrange(1, 3000), rng.randrange(1, 300)
        chunks = [(start, min(most, size - start)) for start in range(0, size, most)]
        assert windows.reads_in_chunks(size, most) == pytest.approx(sum(windows.reads(*chunk) for chunk in chunks))


def test_the_longest_chunk_that_a_budget_pays_for_is_found_whatever_the_windows():
    rng = random.Random(2)
    for _ in range(3000):
        windows = AttentionWindows.of_layers(some_windows(rng))
        budget, start = rng.randrange(1, 600), rng.choice((0, rng.randrange(200), rng.randrange(10_000)))
        price = rng.choice((0.0, rng.uniform(0, 1e-2), rng.uniform(0, 9)))
        longest = windows.most_tokens(budget, start, price)
        costs = [size + price * windows.pairs(start, size) for size in (longest, longest + 1)]
        assert costs[0] <= budget * (1 + 1e-9) and costs[1] > budget * (1 - 1e-9)


def test_where_no_layer_has_a_window_counts_are_whole_numbers_of_all_positions():
    for windows in (EVERYTHING, AttentionWindows.of_layers([None] * 30), AttentionWindows.of_layers([])):
        assert windows is EVERYTHING
        assert [windows.reads(300, 20), windows.pairs(300, 20), windows.positions(7)] == [320, pairs_of(300, 20), 7]
        assert all(isinstance(count, int) for count in (windows.reads(3, 2), windows.pairs(3, 2), windows.positions(7)))


def test_layers_with_the_same_window_are_counted_together():
    assert AttentionWindows.of_layers(MIXED) == AttentionWindows(((1, 1), (20, 2), (300, 1)), 3)
    assert AttentionWindows.of_layers(MISTRAL) == AttentionWindows(((4096, 4),), 0)


@pytest.mark.parametrize("layers", [MISTRAL, GEMMA, MIXED], ids=["all", "two of three", "of many sizes"])
def test_the_cost_model_predicts_a_first_token_as_the_sum_of_its_chunks(layers):
    windows = AttentionWindows.of_layers(layers)
    model = CostModel(COSTS, max_num_seqs=16, max_batched_tokens=256, windows=windows)
    chunks = (chunk_work(start, min(256, 5000 - start), start + 256 > 5000, windows) for start in range(0, 5000, 256))
    assert model.first_token_seconds(5000) == pytest.approx(sum(map(model.step_seconds, chunks)))


def test_beyond_the_window_an_output_token_costs_no_more():
    model = CostModel(COSTS, max_num_seqs=16, max_batched_tokens=256, windows=AttentionWindows.of_layers([100, None]))
    assert model.decode_seconds(1000) - model.decode_seconds(500) == pytest.approx(250 * 1.1e-5)
    assert model.prefill_seconds(10, 1000) == pytest.approx(10 * 0.0015 + (10 * 100 + pairs_of(1000, 10)) / 2 * 1e-6)


def test_beside_a_decode_a_late_chunk_is_as_long_as_its_windows_make_it_and_its_work_is_what_was_counted():
    def late(layers):
        """The first iteration with a chunk after 3,000 tokens, and its work."""
        windows = AttentionWindows.of_layers(layers)
        scheduler = make_scheduler(num_blocks=2000, max_model_len=4000, max_batched_tokens=64, pair_tokens=1e-2, windows=windows)
        scheduler.add(make_request(1, [1], max_tokens=1000), 0.0)
        step(scheduler)
        scheduler.add(make_request(2, range(3900)), 0.0)
        while (plan := step(scheduler)[0]).chunks[1].start < 3000:
            pass
        return plan.chunks, plan.work(windows)

    (decode, chunk), work = late([None, None])
    (_, longer), less = late([16, 16])
    assert (chunk.num_tokens, longer.num_tokens) == (4, int(63 / 1.16))
    assert work.reads == decode.start + 1 + chunk.start + chunk.num_tokens
    assert less == StepWork(1 + longer.num_tokens, 1, 16 + 15 + longer.num_tokens, 16 + 16 * longer.num_tokens)


def test_an_engine_bounds_chunks_by_the_windows_of_its_model():
    windows = AttentionWindows.of_layers(GEMMA)
    engine = make_engine(windows=windows)
    engine.scheduler.limits = StepLimits(8, 16)  # as when limits are chosen
    engine.bound_chunks()
    assert engine.scheduler.limits.windows is windows
