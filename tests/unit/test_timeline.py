"""A request's timeline: when it began to be computed, how often it gave way, when its client heard of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fastserve.core.events import Timeline, TokenEvent
from fastserve.core.request import FinishReason
from fastserve.errors import StepFailed
from fastserve.tasks.text_generation import GenerationInput, TextGeneration
from fastserve.triton.generation_stream import GenerationResponse
from fastserve.triton.protocol import ReturnFlags
from tests.doubles import ByteTokenizer, FakeClock, RecordingChannel, make_engine, make_manifest, make_request
from tests.hashing_runner import HashingRunner


def timed(request):
    return dataclasses.replace(request, return_timing=True)


def test_a_request_started_with_its_first_iteration_however_often_it_is_computed():
    clock = FakeClock(5.0)
    engine = make_engine(clock=clock, num_blocks=6, block_size=4, max_model_len=24)
    engine.submit(make_request(0, range(8), max_tokens=12))
    engine.submit(timed(make_request(1, range(8), max_tokens=10)))
    clock.advance(1.0)
    timelines = []
    while engine.has_work:
        timelines += [event.timeline for event in engine.step() if event.request_id == 1]
        clock.advance(1.0)
    assert timelines[0] == Timeline(6.0, 0, 0) and timelines[-1].started == 6.0
    assert timelines[-1].num_preemptions == engine.stats().preemptions > 0


def test_a_run_that_failed_counts_as_the_start():
    runner, clock = HashingRunner(), FakeClock(1.0)
    engine = make_engine(runner, clock=clock)
    runner.failures = [StepFailed("injected", retryable=True)]
    engine.submit(timed(make_request(1, [1, 2])))
    (event,) = engine.step()
    assert event.timeline == Timeline(1.0, 0, 0)


def test_what_was_found_of_the_prompt_is_told_and_not_what_is_found_again_after_preemption():
    engine = make_engine()
    for request_id, prompt in enumerate((range(8), range(11))):
        engine.submit(timed(make_request(request_id, prompt, max_tokens=9, n=1 + request_id, temperature=1.0)))
        events = [event for _ in range(5) for event in engine.step()]
    engine.scheduler.preempt(engine.scheduler.sequences[-1])
    while engine.has_work:
        events += engine.step()
    told = {(event.request_id, event.index, event.timeline.num_prompt_cached) for event in events}
    assert told == {(0, 0, 0), (1, 0, 8), (1, 1, 8)}


def test_nothing_is_told_to_those_who_did_not_ask():
    engine = make_engine()
    engine.submit(make_request(1, [1, 2]))
    (event,) = engine.step()
    assert event.timeline is None


@pytest.mark.parametrize("stream", [True, False])
def test_the_last_response_tells_the_timeline(stream):
    clock = FakeClock(10.0)
    task = TextGeneration(make_manifest(), ByteTokenizer(), None, max_model_len=128, random_seed=lambda: 0)
    prepared = task.prepare(GenerationInput("ask", None, stream, return_timing=True), 1, 9.0)
    channel = RecordingChannel()
    response = GenerationResponse(
        channel, prepared, ReturnFlags(timing=True), task.tokenizer, withdraw=lambda *_: None, clock=clock
    )
    response.push([TokenEvent(1, 97, None, None, timeline=Timeline(9.5, 0, 16))])
    clock.advance(2.0)
    response.push([TokenEvent(1, 98, None, FinishReason.LENGTH, timeline=Timeline(9.5, 3, 16))])
    *others, (last, _) = channel.responses
    assert json.loads(last["timing"][0]) == {
        "queue_ms": 500.0,
        "first_token_ms": 1000.0,
        "total_ms": 3000.0,
        "cached_tokens": 16,
        "num_preemptions": 3,
    }
    assert len(others) == stream and all("timing" not in tensors for tensors, _ in others)
