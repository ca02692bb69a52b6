"""The prefix cache: what was computed before is found by its contents, never anything else, and never half of it."""

from __future__ import annotations

import hashlib
import struct

import pytest

from fastserve.core.block_pool import BlockPool
from fastserve.core.invariants import violations
from fastserve.core.prefix_cache import CachedPrefix, PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.sequence import Sequence
from fastserve.errors import StepFailed
from tests.doubles import collect, make_engine, make_request, run_to_end
from tests.hashing_runner import hash_logits

TEXT = tuple(range(40, 60))  # five blocks of 4


def filled(num_computed, request, cache=None):
    """A cache in which ``num_computed`` tokens of a request were computed by a sequence that has ended."""
    cache = cache or PrefixCache(BlockPool(64, 4))
    sequence = Sequence(request)
    sequence.block_table = cache.pool.allocate(cache.pool.blocks_for(num_computed))
    sequence.num_computed = num_computed
    cache.register(sequence, 0)
    cache.pool.release(reversed(sequence.block_table))
    return cache


def found(cache, prompt, **changes):
    request = Request(9, tuple(prompt), SamplingParams(), **changes)
    return cache.match(Sequence(request)).num_tokens


def served(engine, *requests):
    return [outcome.token_ids for outcome in run_to_end(engine, requests).values()]


def computed(engine):
    """Tokens that were computed by each run."""
    return [batch.num_tokens for batch in engine._runner.batches]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (TEXT, 19),
        ((*TEXT, 1), 20),
        (TEXT[:11], 8),
        ((*TEXT[:11], 1, *TEXT[12:]), 8),
        ((1, *TEXT[1:]), 0),
        (TEXT[4:], 0),
        (TEXT[:3], 0),
    ],
    ids=["all but its last token", "all", "full blocks", "until it differs", "nothing", "not from the middle", "too short"],
)
def test_the_longest_beginning_in_full_blocks_is_found(prompt, tokens):
    assert found(filled(20, make_request(1, TEXT)), prompt) == tokens


def test_a_block_that_is_not_full_cannot_be_found():
    cache = filled(11, make_request(1, TEXT))
    assert found(cache, TEXT) == 8
    assert (cache.pool.num_cached, cache.pool.num_free) == (2, 64)


def test_a_later_block_is_found_only_behind_all_that_came_before_it():
    cache = filled(20, make_request(1, TEXT))
    while cache.pool.find(cache._digest(Sequence(make_request(2, TEXT)), 4)) is not None:
        cache.pool.allocate(1)  # evicts the last block first
    assert found(cache, TEXT) == 16


def test_output_is_found_like_a_prompt():
    engine = make_engine()
    ((*answer,),) = served(engine, make_request(1, TEXT, max_tokens=6))
    del engine._runner.batches[:]
    served(engine, make_request(2, (*TEXT, *answer, 7, 8), max_tokens=1))
    assert computed(engine) == [28 - 24]  # 25 were computed, the last token of the answer never


@pytest.mark.parametrize("field", ["cache_salt", "tenant"])
def test_a_salt_keeps_requests_apart_and_with_per_tenant_the_tenant_does(field):
    ours, theirs = ({field: name} for name in ("ours", "theirs"))
    request = Request(1, TEXT, SamplingParams(), **ours)
    for mode in ("on", "per_tenant"):
        cache = filled(20, request, PrefixCache(BlockPool(64, 4), mode=mode))
        assert found(cache, TEXT, **ours) == 19
        apart = field == "cache_salt" or mode == "per_tenant"
        assert found(cache, TEXT, **theirs) == found(cache, TEXT) == (0 if apart else 19)


def test_a_tenant_and_a_salt_do_not_run_together():
    cache = filled(
        20, Request(1, TEXT, SamplingParams(), tenant="a", cache_salt="bc"), PrefixCache(BlockPool(64, 4), mode="per_tenant")
    )
    assert found(cache, TEXT, tenant="ab", cache_salt="c") == 0


def test_contents_depend_on_the_model_and_are_named_by_a_cryptographic_hash_of_every_token_before():
    def digest(number, identity="model"):
        return PrefixCache(BlockPool(1, 16), identity=identity)._digest(Sequence(make_request(1, range(32))), number)

    parent = hashlib.blake2b(b'["model", 16, "", ""]', digest_size=32).digest()
    for number in (0, 1):
        tokens = struct.pack("<16I", *range(16 * number, 16 * number + 16))
        parent = hashlib.blake2b(parent + tokens, digest_size=32).digest()
        assert digest(number) == parent != digest(number, "another model")


def test_nothing_is_found_when_it_is_off():
    engine = make_engine(prefix_cache="off")
    served(engine, make_request(1, TEXT), make_request(2, TEXT))
    assert engine.stats().blocks_cached == engine.stats().prefix_queries == 0
    assert engine.scheduler.pool.digests() == {}


def test_a_prompt_that_is_all_there_costs_one_token_which_is_not_written():
    engine = make_engine(max_batched_tokens=32)
    first = served(engine, make_request(1, TEXT))
    del engine._runner.batches[:]
    assert served(engine, make_request(2, TEXT)) == first
    assert engine._runner.batches[0].slot_mapping.tolist() == [-1]
    assert engine._runner.batches[0].past_seqlens.tolist() == [19]


def test_hits_and_queries_are_counted_in_tokens_of_the_prompts_when_they_begin():
    engine = make_engine()
    served(engine, make_request(1, TEXT))
    served(engine, make_request(2, (*TEXT, 1, 2, 3)))
    assert (engine.stats().prefix_queries, engine.stats().prefix_hits) == (20 + 23, 20)


def test_what_is_wanted_of_a_prompt_is_computed_and_what_comes_before_is_not():
    engine = make_engine(max_batched_tokens=32)
    request = make_request(1, TEXT, prompt_logprobs=0, max_tokens=1)
    (first,) = run_to_end(engine, [request]).values()
    del engine._runner.batches[:]
    (second,) = run_to_end(engine, [make_request(2, TEXT, prompt_logprobs=0, max_tokens=1)]).values()
    assert second.prompt_logprobs == first.prompt_logprobs and len(second.prompt_logprobs) == 19
    assert computed(engine) == [20]
    known = Sequence(make_request(3, TEXT, prompt_logprobs=0))
    known.num_prompt_logprobs_known = 10  # it was preempted then
    assert engine.scheduler.prefix_cache.match(known).num_tokens == 8


def test_a_preempted_sequence_finds_what_it_had_computed():
    engine = make_engine()
    engine.submit(make_request(1, TEXT, max_tokens=9))
    events = [event for _ in range(5) for event in engine.step()]
    (sequence,) = engine.scheduler.sequences
    num_computed = sequence.num_computed
    engine.scheduler.preempt(sequence)
    assert sequence.num_cached == num_computed - num_computed % 4
    assert sequence.num_uncomputed == sequence.num_tokens - sequence.num_cached
    del engine._runner.batches[:]
    while engine.has_work:
        events += engine.step()
    assert computed(engine)[0] == num_computed % 4 + 1
    assert collect(events)[1].token_ids == served(make_engine(), make_request(1, TEXT, max_tokens=9))[0]
    assert engine.stats().prefix_hits == 0  # of the prompt nothing was there


def test_the_tokens_of_a_failed_run_cannot_be_found():
    engine = make_engine(max_batched_tokens=8)
    engine.submit(make_request(1, TEXT))
    engine.step()
    engine._runner.failures = [StepFailed("broken", retryable=False)]
    engine.step()  # its blocks are half written
    assert not engine.has_work and violations(engine.scheduler) == []
    assert found(engine.scheduler.prefix_cache, TEXT) == 8


def test_a_failed_run_gives_back_what_was_taken_over():
    engine = make_engine(max_batched_tokens=8)
    served(engine, make_request(1, TEXT))
    cached = engine.scheduler.pool.cached_blocks()
    engine.submit(make_request(2, (*TEXT, 1, 2)))
    with engine.scheduler.reserve(engine.scheduler.plan(0.0)):
        (sequence,) = engine.scheduler.sequences
        assert (len(sequence.block_table), sequence.num_computed) == (6, 20)
    assert (sequence.block_table, sequence.num_computed, sequence.num_cached) == ([], 0, 20)
    assert sorted(engine.scheduler.pool.cached_blocks()) == sorted(cached)
    assert violations(engine.scheduler) == [] and engine.scheduler.pool.num_used == 0


def test_two_that_compute_the_same_at_once_keep_their_blocks_and_the_first_ones_are_found():
    engine = make_engine(max_batched_tokens=64)
    first, second = served(engine, make_request(1, TEXT), make_request(2, TEXT))
    assert first == second
    assert computed(engine)[0] == 40
    tables = engine._runner.batches[0].block_table.tolist()
    assert set(tables[0]) <= set(engine.scheduler.pool.digests()) and not set(tables[1]) & set(engine.scheduler.pool.digests())


def test_those_that_come_together_wait_for_the_first_ones_chunks():
    engine = make_engine(max_batched_tokens=8, num_blocks=100)
    served(engine, *(make_request(number, (*TEXT, number), max_tokens=1) for number in range(6)))
    assert sum(computed(engine)) < 6 * 21 / 2


def test_a_running_sequences_blocks_are_shared_and_never_written_by_the_other():
    engine = make_engine(num_blocks=12)
    engine.submit(make_request(1, TEXT, max_tokens=9))
    for _ in range(3):
        engine.step()
    engine.submit(make_request(2, (*TEXT, 1), max_tokens=9))
    engine.step()
    first, second = engine.scheduler.sequences
    assert first.block_table[:5] == second.block_table[:5] and first.block_table[5] != second.block_table[5]
    assert engine.scheduler.pool.num_used == 7
    assert violations(engine.scheduler) == []


def test_answers_of_one_request_find_their_own_blocks_after_preemption():
    engine = make_engine()
    engine.submit(make_request(1, TEXT, n=2, temperature=1.0, max_tokens=9))
    for _ in range(7):
        engine.step()
    for sequence in engine.scheduler.sequences:
        num_computed = sequence.num_computed
        engine.scheduler.preempt(sequence)
        assert engine.scheduler.prefix_cache.match(sequence).num_tokens == num_computed - num_computed % 4
    assert violations(engine.scheduler) == []


def test_the_hint_of_a_waiting_sequence_is_a_hint_only():
    engine = make_engine(num_blocks=6)
    served(engine, make_request(1, TEXT, max_tokens=2))
    engine.submit(make_request(2, range(20), max_tokens=4))
    engine.submit(make_request(3, TEXT, max_tokens=2))
    waiting = engine.scheduler.sequences[1]
    assert (waiting.num_cached, waiting.num_uncomputed) == (19, 1)
    while len(engine.scheduler) == 2:
        engine.step()  # evicts what was hoped for
    outcomes = {}
    events = []
    while engine.has_work:
        events += engine.step()
    collect(events, outcomes)
    assert outcomes[3].token_ids[0] == int(hash_logits(TEXT).argmax())


def test_the_full_blocks_of_a_prompt_are_hashed_when_it_comes_and_not_while_an_iteration_is_planned(monkeypatch):
    engine = make_engine()
    engine.submit(make_request(1, range(63)))
    (sequence,) = engine.scheduler.sequences
    assert len(sequence.block_digests) == 15
    monkeypatch.delattr("hashlib.blake2b")
    assert engine.scheduler.prefix_cache.match(sequence) == CachedPrefix()
