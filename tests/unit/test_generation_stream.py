"""Tokens back to text: deltas, stop strings, ends."""

from __future__ import annotations

import pytest

from fastserve.core.events import TokenEvent
from fastserve.core.request import FinishReason
from fastserve.tasks.text_generation import GenerationStream
from tests.doubles import ByteTokenizer
from tests.unit.test_text_generation import EOS, prepare


def push_all(token_ids, reason, *, logprob=None, **fields):
    """The deltas of an answer whose last token came with ``reason``; stops where the stream says it is over."""
    stream = GenerationStream(prepare(text="a", **fields), ByteTokenizer())
    deltas = []
    for index, token_id in enumerate(token_ids):
        deltas.append(stream.push(TokenEvent(5, token_id, logprob, reason if index == len(token_ids) - 1 else None)))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


def test_each_token_gives_its_text_and_the_sum_of_the_log_probabilities():
    deltas = push_all(b"abc", FinishReason.LENGTH, logprob=-0.5)
    assert [delta.text for delta in deltas] == ["a", "b", "c"]
    assert [delta.cumulative_logprob for delta in deltas] == [-0.5, -1.0, -1.5]
    assert [delta.finish_reason for delta in deltas] == [None, None, FinishReason.LENGTH]


def test_the_stop_tokens_text_is_left_out_unless_asked_for():
    ids = [*b"ab", ord("!")]
    fields = {"stop_token_ids": [ord("!")]}
    assert text_of(push_all(ids, FinishReason.STOP, **fields)) == "ab"
    assert text_of(push_all(ids, FinishReason.STOP, include_stop_str_in_output=True, **fields)) == "ab!"


def test_the_end_token_is_shown_only_when_special_tokens_and_the_stop_are_wanted():
    ids = [*b"ab", EOS]
    assert text_of(push_all(ids, FinishReason.STOP)) == "ab"
    assert text_of(push_all(ids, FinishReason.STOP, skip_special_tokens=False)) == "ab"
    assert text_of(push_all(ids, FinishReason.STOP, skip_special_tokens=False, include_stop_str_in_output=True)) == "ab</s>"


def test_the_last_token_of_a_guided_answer_is_text_when_it_completes_the_answer():
    assert text_of(push_all(b"yes", FinishReason.STOP, choice=["yes", "no"])) == "yes"
    assert text_of(push_all([*b"yes", EOS], FinishReason.STOP, regex="yes|yesterday")) == "yes"


def test_an_end_token_that_did_not_end_it_is_ordinary_text():
    assert text_of(push_all([97, EOS, 98], FinishReason.LENGTH, ignore_eos=True, skip_special_tokens=False)) == "a</s>b"


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.STOP])
def test_what_might_have_begun_a_stop_string_is_released_at_the_end(reason):
    ids = list(b"ab EN") + ([EOS] if reason is FinishReason.STOP else [])
    deltas = push_all(ids, reason, stop="END")
    assert text_of(deltas) == "ab EN"
    assert deltas[-1].finish_reason is reason


def test_an_unfinished_character_is_released_at_the_end():
    assert text_of(push_all("a€".encode()[:-1], FinishReason.LENGTH)) == "a\ufffd"


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "ab##")])
def test_a_stop_string_ends_the_answer_before_the_engine_knows(include, text):
    deltas = push_all(b"ab##never", FinishReason.LENGTH, stop=["##"], include_stop_str_in_output=include)
    assert text_of(deltas) == text
    assert len(deltas) == 4
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_a_stop_string_that_completes_with_the_last_token_counts_as_stop():
    deltas = push_all(b"ab##", FinishReason.LENGTH, stop="##")
    assert (text_of(deltas), deltas[-1].finish_reason) == ("ab", FinishReason.STOP)


def test_a_stop_string_of_bytes_that_flush_releases_is_still_found():
    deltas = push_all(b"ab\xe2", FinishReason.LENGTH, stop="\ufffd")
    assert (text_of(deltas), deltas[-1].finish_reason) == ("ab", FinishReason.STOP)


def test_a_stop_string_is_not_looked_for_in_the_prompt():
    assert text_of(push_all(b"bc", FinishReason.LENGTH, stop="ab")) == "bc"


def test_stop_strings_count_only_after_min_tokens():
    made = prepare(text="x", stop="b", min_tokens=3, max_tokens=9)
    stream = GenerationStream(made, ByteTokenizer())
    deltas = [stream.push(TokenEvent(5, token, None, None)) for token in b"abbab"]
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [
        ("a", None),
        ("b", None),
        ("b", None),
        ("a", None),
        ("", FinishReason.STOP),
    ]
