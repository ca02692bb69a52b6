"""Several answers on their way to the client: deltas of each, one ending, the best of them."""

from __future__ import annotations

import json

from fastserve.core.events import PromptLogprobs, TokenEvent
from fastserve.core.logprobs import TokenLogprob
from fastserve.core.request import FinishReason
from fastserve.tasks.text_generation import GenerationInput
from fastserve.triton.generation_stream import GenerationResponse
from fastserve.triton.protocol import ReturnFlags
from tests.doubles import RecordingChannel
from tests.unit.test_text_generation import make_task

ALL = ReturnFlags(True, True, True, True, True)
LENGTH = FinishReason.LENGTH


def open_stream(*, stream=True, **parameters):
    """A response to be, its channel, and the answers it withdraws."""
    channel, withdrawn, task = RecordingChannel(), [], make_task()
    item = GenerationInput("ask", None, stream, parameters={"n": 2} | parameters)
    prepared = task.prepare(item, 5, 0.0)
    response = GenerationResponse(channel, prepared, ALL, task.tokenizer, withdraw=lambda *answer: withdrawn.append(answer))
    return response, channel, withdrawn


def token(index, letter, reason=None, *, num_open=1, logprob=-0.5):
    return TokenEvent(5, ord(letter), logprob, reason, index=index, num_open=num_open)


def rows(channel, name):
    return [tensors[name].tolist() for tensors, _ in channel.responses]


def test_each_delta_has_an_element_for_each_answer_and_an_ended_one_keeps_its_reason():
    response, channel, _ = open_stream()
    assert response.push([token(0, "a"), token(1, "x")]) is None
    assert response.push([token(0, "b", LENGTH), token(1, "y")]) is None
    end = response.push([token(1, "z", LENGTH, num_open=0)])
    assert rows(channel, "text_output") == [[b"a", b"x"], [b"b", b"y"], [b"", b"z"]]
    assert rows(channel, "finish_reason") == [[b"None", b"None"], [b"length", b"None"], [b"length", b"length"]]
    assert rows(channel, "cumulative_logprob") == [[-0.5, -0.5], [-1.0, -1.0], [-1.0, -1.5]]
    assert rows(channel, "num_output_tokens") == [[1, 1], [1, 1], [0, 1]]
    assert rows(channel, "output_ids") == [[97, 120], [98, 121], [122]]
    assert rows(channel, "num_input_tokens") == [[4]] * 3
    assert [final for _, final in channel.responses] == [False, False, True]
    assert (end.ending, end.engine_knows) == ("length", True)


def test_whole_answers_each_begin_with_the_prompt():
    response, channel, _ = open_stream(stream=False)
    assert response.push([token(0, "a"), token(1, "x", LENGTH)]) is None and channel.responses == []
    response.push([token(0, "b", LENGTH, num_open=0)])
    assert rows(channel, "text_output") == [[b"askab", b"askx"]]
    assert channel.endings == 1


def test_an_answer_that_meets_a_stop_string_is_withdrawn_alone_and_says_nothing_more():
    response, channel, withdrawn = open_stream(stop="#")
    response.push([token(0, "a"), token(1, "x")])
    response.push([token(0, "#"), token(1, "y")])
    assert withdrawn == [(5, 0)]
    assert response.push([token(0, "b")]) is None  # the engine did not know yet
    assert len(channel.responses) == 2
    end = response.push([token(0, "c"), token(1, "z", LENGTH, num_open=1)])
    assert rows(channel, "text_output") == [[b"a", b"x"], [b"", b"y"], [b"", b"z"]]
    assert rows(channel, "finish_reason")[-1] == [b"stop", b"length"]
    assert not end.engine_knows and channel.endings == 1


def test_of_several_answers_the_likeliest_are_sent_the_best_first():
    response, channel, _ = open_stream(stream=False, best_of=4)
    for index, (letter, logprob) in enumerate((("a", -3.0), ("b", -1.0), ("c", -4.0), ("d", -2.0))):
        end = response.push([token(index, letter, LENGTH, num_open=3 - index, logprob=logprob)])
    assert rows(channel, "text_output") == [[b"askb", b"askd"]]
    assert rows(channel, "cumulative_logprob") == [[-1.0, -2.0]]
    assert rows(channel, "num_output_tokens") == [[1, 1]] and end.engine_knows


def test_the_prompts_logprobs_wait_for_the_first_response_and_are_sent_once():
    response, channel, _ = open_stream(prompt_logprobs=0)
    for token_id in (115, 107):
        assert response.push([PromptLogprobs(5, ((TokenLogprob(token_id, -0.5, 1),),))]) is None
    assert channel.responses == []
    response.push([token(0, "a"), token(1, "x")])
    response.push([token(0, "b"), token(1, "y")])
    first, second = (tensors for tensors, _ in channel.responses)
    assert [position and list(position) for position in json.loads(first["prompt_logprobs"][0])] == [None, ["115"], ["107"]]
    assert "prompt_logprobs" not in second


def test_a_stream_that_may_waits_for_so_many_tokens_of_an_answer_but_not_for_the_first_or_after_the_last():
    response, channel, _ = open_stream(stream_interval=3)
    for letter in "abcde":
        response.push([token(0, letter), token(1, letter.upper())])
    response.push([token(0, "f", LENGTH), token(1, "F", LENGTH, num_open=0)])
    assert rows(channel, "text_output") == [[b"a", b"A"], [b"bcd", b"BCD"], [b"ef", b"EF"]]
    assert rows(channel, "num_output_tokens") == [[1, 1], [3, 3], [2, 2]]
    assert channel.endings == 1


def test_the_longest_wait_among_the_answers_counts():
    response, channel, _ = open_stream(stream_interval=2)
    response.push([token(0, "a")])
    response.push([token(1, "x")])
    response.push([token(1, "y")])
    assert rows(channel, "text_output") == [[b"a", b""], [b"", b"xy"]]


def test_what_a_stream_held_back_is_sent_before_an_error_follows():
    response, channel, _ = open_stream(stream_interval=100)
    for letter in "abc":
        response.push([token(0, letter)])
    response.flush()
    response.flush()
    assert rows(channel, "text_output") == [[b"a", b""], [b"bc", b""]]
    assert channel.endings == 0
