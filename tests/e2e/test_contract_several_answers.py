"""Several answers to one prompt through the server: what each response says of each of them."""

from __future__ import annotations

import itertools

import pytest

from tests.e2e.test_contract_wire import RETURNS, ask_everywhere, ask_grpc, ask_http, grpc_message, question

PROMPT = "The quick brown fox"
SAMPLED = {"temperature": 1.0, "seed": 7, "max_tokens": 24, "ignore_eos": True}


def whole(server, parameters, model="llama"):
    """The whole answer without its prompt."""
    (row,) = ask_http(server, model, question(parameters, text_input=PROMPT, exclude_input_in_output=True, returns=RETURNS))
    return row


def ids_of(row):
    """The token ids of each answer."""
    ends = itertools.accumulate(row["num_output_tokens"])
    return [row["output_ids"][end - count : end] for end, count in zip(ends, row["num_output_tokens"], strict=True)]


def test_every_protocol_gives_the_same_answers_streamed_or_whole(server):
    asked = question(SAMPLED | {"n": 3}, text_input=PROMPT, stream=True, exclude_input_in_output=True, returns=RETURNS)
    expected = whole(server, SAMPLED | {"n": 3})
    assert len(set(expected["text_output"])) == 3 and expected["finish_reason"] == ["length"] * 3
    for rows in ask_everywhere(server, "llama", asked).values():
        for index in range(3):
            assert "".join(row["text_output"][index] for row in rows) == expected["text_output"][index]
            ids = [ids_of(row)[index] for row in rows]
            assert list(itertools.chain.from_iterable(ids)) == ids_of(expected)[index]
        assert all(len(row[name]) == 3 for row in rows for name in ("finish_reason", "cumulative_logprob", "logprobs"))
        assert rows[-1]["cumulative_logprob"] == pytest.approx(expected["cumulative_logprob"], abs=1e-4)
        assert rows[-1]["finish_reason"] == ["length"] * 3 and {len(row["num_input_tokens"]) for row in rows} == {1}


def test_an_answer_is_the_same_whatever_the_number_of_answers(server):
    one, two, five = (whole(server, SAMPLED | {"n": n}) for n in (1, 2, 5))
    assert ids_of(one) == ids_of(two)[:1] and ids_of(two) == ids_of(five)[:2]


def test_answers_are_the_same_when_the_pool_is_too_small_for_all_of_them(server):
    """384 tokens of pool, and eight answers of 90 tokens."""
    parameters = SAMPLED | {"n": 8, "max_tokens": 80}
    assert ids_of(whole(server, parameters, "llama-small-pool")) == ids_of(whole(server, parameters))


def test_each_whole_answer_begins_with_the_prompt(server):
    (row,) = ask_grpc(server, grpc_message("llama", question(SAMPLED | {"n": 2}, text_input=PROMPT)))
    assert row.shapes["text_output"] == (2,) and all(text.startswith(PROMPT) for text in row.values["text_output"])


def test_the_best_answers_are_those_with_the_highest_log_probability(server):
    six = whole(server, SAMPLED | {"n": 6})
    best = whole(server, SAMPLED | {"n": 2, "best_of": 6})
    order = sorted(range(6), key=lambda index: -six["cumulative_logprob"][index])[:2]
    assert ids_of(best) == [ids_of(six)[index] for index in order]
    assert best["cumulative_logprob"] == pytest.approx([six["cumulative_logprob"][index] for index in order], abs=1e-4)


def test_a_stop_string_ends_one_answer_and_the_others_go_on(server):
    free = whole(server, SAMPLED | {"n": 3})["text_output"]
    letters = [letter for letter in free[0] if letter.isprintable() and letter.isascii() and letter not in free[1] + free[2]]
    stopped = whole(server, SAMPLED | {"n": 3, "stop": letters[0]})
    assert stopped["text_output"] == [free[0][: free[0].index(letters[0])], *free[1:]]
    assert stopped["finish_reason"] == ["stop", "length", "length"]
