"""Every sampling parameter of the table through the server: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import pytest

from fastserve.tasks.sampling_parameters import PARAMETERS
from tests.e2e.metrics_page import wait_until
from tests.e2e.test_cancellation import LONG_PROMPT, MODEL, cancelled
from tests.e2e.test_contract_wire import (
    Refused,
    ask_grpc,
    ask_http,
    grpc_message,
    open_channel,
    post,
    question,
    rows_of,
    start_call,
)

TURN = {"role": "user", "content": "hello"}
GOOD = {
    "n": [1, "1", 3],
    "best_of": [1, "2", 5],
    "num_beams": [1, "2", 5],
    "length_penalty": [1, "0.5", -2, 10],
    "early_stopping": [True, "never", "false"],
    "max_tokens": [1, "3", 4.0, 10_000],
    "min_tokens": [0, "2", 16],
    "temperature": [0, 1e-9, 0.7, "1.5", 100],
    "top_p": [1e-6, 0.5, "0.9", 1],
    "top_k": [-1, 0, 1, "50", 10_000],
    "min_p": [0, 0.1, "0.5", 1],
    "presence_penalty": [-2, 0, 1.5, "2"],
    "frequency_penalty": [-2, 0, 1.5, "2"],
    "repetition_penalty": [0.1, 1, "1.2", 100],
    "seed": [0, -1, "7", 2**64 - 1, -(2**63)],
    "stop": ["never", ["never", "ever"], [], ["never"] * 64],
    "stop_token_ids": [[], [268], ["5", 6.0]],
    "ignore_eos": [True, False, "true", "FALSE", 1, "0"],
    "include_stop_str_in_output": [True, "false"],
    "skip_special_tokens": [False, "true"],
    "logprobs": [0, "5", 20],
    "prompt_logprobs": [0, "1", 20],
    "bad_words": ["darn", ["darn", "heck"], []],
    "truncate_prompt_tokens": [1, "2", 10_000],
    "tools": [[]],
    "deadline_ms": [60_000, "60000", 10**10],
    "priority": [0, "0"],
    "tenant": ["", "ada"],
    "cache_salt": ["", "ada"],
    "stream_interval": [1, "8", 10**6],
    "json": [{"type": "object"}, "{}", True, "true", False],
    "regex": ["a+", "^(the|in)+$"],
    "choice": [["yes", "no"], '["yes"]'],
    "messages": [[TURN], [{"role": "system", "content": ""}, TURN]],
}
BAD = {
    "n": [0, -1, 129, "many", 1.5, True],
    "best_of": [0, -1, 129, "many", True],
    "num_beams": [0, 33, "many", 1.5, True],
    "length_penalty": [-11, 10.1, "x", True],
    "early_stopping": ["ever", 2],
    "max_tokens": [0, -1, "many", 1.5, True, [4], float("inf")],
    "min_tokens": [-1, "few", 0.5, False],
    "temperature": [-0.1, 101, "hot", True, float("nan"), [1]],
    "top_p": [0, -1, 1.01, "all", True],
    "top_k": [-2, 1.5, "all", True],
    "min_p": [-0.1, 1.1, "none", {}],
    "presence_penalty": [-2.1, 2.1, "x", True],
    "frequency_penalty": [-2.1, 2.1, "x", True],
    "repetition_penalty": [0, -1, 101, "x", True],
    "seed": [2**64, -(2**63) - 1, 1.5, "x", True],
    "stop": ["", [""], [1], 5, {"a": 1}, ["x"] * 65],
    "stop_token_ids": ["5", 5, [-1], ["x"], [1.5], [True], [5] * 1025],
    "ignore_eos": ["no", 2, [], {}],
    "include_stop_str_in_output": ["maybe", 5],
    "skip_special_tokens": ["", -1],
    "logprobs": [-1, 21, "few", True],
    "prompt_logprobs": [-1, 21, 0.5, True],
    "bad_words": ["", [1], 5, ["x"] * 65],
    "truncate_prompt_tokens": [0, -1, "few", True],
    "tools": ["f", [1], {"a": 1}],
    "deadline_ms": [0, -5, 10**10 + 1, "soon", 0.5],
    "priority": [-101, 101, 0.5, "x", True],
    "tenant": [1, ["ada"], "a" * 257],
    "cache_salt": [1, ["ada"], "a" * 257],
    "stream_interval": [0, -1, 10**6 + 1, 1.5, "x", True],
    "json": ["{", "[]", 5, [], ""],
    "regex": ["", 5, ["a"], "a\\"],
    "choice": ["yes", [], [""], [1], "[]", {}],
    "messages": ["hi", [], [{}], [{"role": "user"}], [{"role": 1, "content": "x"}], [{"role": "user", "content": ["x"]}], TURN],
}
REQUEST_PARAMETERS = {"max_tokens": 5, "temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_length": 3, "seed": 11}
"""What clients of vLLM's backend send as undeclared top-level keys of ``generate``."""


def cases(table):
    return [pytest.param(key, value, id=f"{key}={str(value)[:30]}") for key, values in table.items() for value in values]


def with_parameter(key, value):
    prompt = {} if key == "messages" else {"text_input": "hello"}
    return question({key: value}, returns=("output_ids", "finish_reason"), **prompt)


def assert_names(message, key, value, allowed):
    """``value`` is shortened when it is long."""
    assert message.startswith(f"{key}: got {value!r}"[: len(key) + 70]), message
    assert message.endswith(f", allowed: {allowed}"), message


def test_every_parameter_of_the_table_has_its_cases_here():
    assert set(GOOD) == set(BAD) == set(PARAMETERS)


@pytest.mark.parametrize(("key", "value"), cases(GOOD))
def test_a_good_value_is_accepted(server, key, value):
    (row,) = ask_http(server, "llama", with_parameter(key, value))
    assert row["finish_reason"][0] in ("stop", "length") and row["output_ids"]


@pytest.mark.parametrize("key", [*PARAMETERS])
def test_null_means_the_default(server, key):
    (row,) = ask_http(server, "llama", question({"temperature": 0} | {key: None}, text_input="hello", returns=("output_ids",)))
    assert row["output_ids"]


@pytest.mark.parametrize(("key", "value"), cases(BAD))
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(server, key, value):
    inputs = with_parameter(key, value)
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama", inputs))
    assert_names(caught.value.message, key, value, PARAMETERS[key].allowed)
    for method in ("generate", "generate_stream"):
        answer = post(server, "llama", inputs, method)
        assert answer.status_code == 400 and key in answer.text and "allowed: " in answer.text


@pytest.mark.parametrize("key", ["max_tokns", "maxTokens", "", "n_predict", "stream", "return_output_ids"])
def test_an_unknown_key_is_refused_with_the_known_ones(server, key):
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama", question({key: 5}, text_input="hello")))
    assert_names(caught.value.message, key, 5, f"a known sampling parameter: {', '.join(PARAMETERS)}")


def test_min_tokens_above_max_tokens_is_refused_with_both_numbers(server):
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama", question({"min_tokens": 9, "max_tokens": 8}, text_input="hello")))
    assert_names(caught.value.message, "min_tokens", 9, "at most max_tokens (8)")


def test_a_stop_token_id_beyond_the_vocabulary_is_refused_with_its_size(server):
    with pytest.raises(Refused) as caught:
        ask_grpc(server, grpc_message("llama", question({"stop_token_ids": [5, 269]}, text_input="hello")))
    assert_names(caught.value.message, "stop_token_ids", 269, "token ids from 0 to 268")


@pytest.mark.parametrize("convert", [lambda value: value, str], ids=["numbers", "strings"])
def test_request_parameters_say_the_same_as_the_json_over_both_protocols(server, convert):
    parameters = {key: convert(value) for key, value in REQUEST_PARAMETERS.items()}
    asked = question(returns=("output_ids",), text_input="hello")
    (expected,) = ask_http(server, "llama", question(REQUEST_PARAMETERS, returns=("output_ids",), text_input="hello"))
    assert 3 <= len(expected["output_ids"]) <= 5
    assert ask_http(server, "llama", asked | parameters) == [expected]
    assert ask_http(server, "llama", asked | {"parameters": parameters}) == [expected]
    (row,) = ask_grpc(server, grpc_message("llama", asked, **parameters))
    assert row.values == expected


@pytest.mark.parametrize("key", REQUEST_PARAMETERS)
def test_each_request_parameter_of_generate_is_honoured(server, key):
    """Not one of them is dropped: a value out of range is noticed."""
    bad = {"max_tokens": 0, "temperature": -1, "top_p": 2, "top_k": -2, "min_length": -1, "seed": "x"}[key]
    answer = post(server, "llama", {"text_input": "hello", key: bad})
    assert answer.status_code == 400
    assert_names(
        answer.json()["error"].removeprefix("INVALID_ARG: "),
        key,
        bad,
        PARAMETERS["min_tokens" if key == "min_length" else key].allowed,
    )


def test_the_words_true_and_false_say_whether_to_stream_in_a_request_parameter(server):
    (row,) = ask_grpc(server, grpc_message("llama", question(text_input="hello"), max_tokens=4, stream="false"))
    assert row.final
    message = grpc_message(MODEL, question(input_ids=LONG_PROMPT), max_tokens=10_000, ignore_eos="true", stream="true")
    before = cancelled(server)
    with open_channel(server) as channel:
        call = start_call(channel, message)
        assert not next(rows_of(call)).final, "an answer of ten seconds came whole"
        call.cancel()
        wait_until(lambda: cancelled(server) == before + 1)


def test_the_word_false_is_false_in_a_request_parameter(server):
    asked = question(returns=("finish_reason",), text_input="hello") | {"temperature": 0, "max_tokens": 4}
    outcomes = [
        ask_http(server, "llama", asked | {"exclude_input_in_output": False} | {"ignore_eos": word})
        for word in ("false", "False", "0", False, 0)
    ]
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_the_tensor_counts_alone_when_there_are_request_parameters_too(server):
    inputs = question({"max_tokens": 3, "temperature": 0, "ignore_eos": True}, text_input="hello", returns=("num_output_tokens",))
    assert ask_http(server, "llama", inputs | {"max_tokens": 9})[0]["num_output_tokens"] == [3]


def test_parameters_that_are_tritons_own_business_are_no_sampling_parameters(server):
    (row,) = ask_grpc(
        server, grpc_message("llama", question(text_input="hello"), max_tokens=3, triton_enable_empty_final_response=True)
    )
    assert row.final
    assert ask_http(server, "llama", {"text_input": "hello", "timeout": 1000, "max_tokens": 3})


def test_a_list_cannot_be_a_request_parameter_and_triton_says_so(server):
    answer = post(server, "llama", {"text_input": "hello", "stop": ["a"]})
    assert answer.status_code == 400 and "'stop' has invalid type" in answer.json()["error"]
