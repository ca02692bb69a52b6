"""Sampling parameters: each key from a number and from a string, and nothing wrong taken for a default."""

from __future__ import annotations

import pytest

from fastserve.errors import InvalidRequest
from fastserve.tasks.guided_decoding import MAX_CHOICES, MAX_GUIDE_BYTES, guide_of
from fastserve.tasks.sampling_parameters import ALIASES, IGNORED, PARAMETERS, parse_sampling_parameters, read_truth

INF, NAN = float("inf"), float("nan")
CHAT = [{"role": "user", "content": "hi"}]
SCHEMA, SCHEMA_TEXT = {"type": "array"}, '{"type": "array"}'
OBJECT_TEXT = '{"type": "object"}'
CALL = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]
HUGE = 10**400

GOOD = {
    "n": [(1, 1), ("3", 3), (128, 128)],
    "best_of": [(1, 1), ("3", 3), (128, 128)],
    "num_beams": [(1, 1), ("4", 4), (32, 32)],
    "length_penalty": [(1, 1.0), ("0.5", 0.5), (-10, -10.0), (0, 0.0)],
    "early_stopping": [(True, True), ("false", False), ("never", "never"), (0, False)],
    "max_tokens": [(1, 1), (100, 100), ("100", 100), (12.0, 12), ("12.0", 12), (" 7 ", 7)],
    "min_tokens": [(0, 0), (3, 3), ("3", 3)],
    "temperature": [(0, 0.0), (0.7, 0.7), ("0.7", 0.7), (100, 100.0), ("1e-1", 0.1), (1e-6, 0.0), ("0", 0.0)],
    "top_p": [(1, 1.0), (0.001, 0.001), ("0.9", 0.9)],
    "top_k": [(0, 0), (-1, 0), (50, 50), ("50", 50), ("-1", 0), (10**9, 10**9)],
    "min_p": [(0, 0.0), (1, 1.0), ("0.05", 0.05)],
    "presence_penalty": [(-2, -2.0), (2, 2.0), ("0.5", 0.5)],
    "frequency_penalty": [(-2, -2.0), (2, 2.0), ("-0.5", -0.5)],
    "repetition_penalty": [(0.1, 0.1), (100, 100.0), ("1.2", 1.2)],
    "seed": [(0, 0), (-(2**63), -(2**63)), (2**64 - 1, 2**64 - 1), ("18446744073709551615", 2**64 - 1), ("-3", -3)],
    "stop": [("END", ("END",)), (["a", "b"], ("a", "b")), ([], ()), (("x",) * 64, ("x",) * 64)],
    "stop_token_ids": [([], ()), ([1, 2], (1, 2)), (["3"], (3,)), ((4,), (4,))],
    "ignore_eos": [(True, True), (False, False), ("true", True), ("False", False), ("1", True), (0, False)],
    "include_stop_str_in_output": [(True, True), ("false", False)],
    "skip_special_tokens": [(False, False), ("TRUE", True), ("0", False)],
    "logprobs": [(0, 0), ("5", 5), (20, 20)],
    "prompt_logprobs": [(0, 0), ("1", 1), (20.0, 20)],
    "bad_words": [("darn", ("darn",)), (["a", "b"], ("a", "b")), ([], ())],
    "truncate_prompt_tokens": [(1, 1), ("50", 50)],
    "tools": [([], ()), ([{"type": "function"}], ({"type": "function"},))],
    "stream_interval": [(1, 1), ("8", 8), (10**6, 10**6)],
    "deadline_ms": [(1, 1), ("2500", 2500), (10**10, 10**10)],
    "priority": [(0, 0), ("-3", -3), (-100, -100), (100, 100)],
    "tenant": [("", ""), ("ada", "ada"), ("a" * 256, "a" * 256)],
    "json": [(SCHEMA, SCHEMA_TEXT), (SCHEMA_TEXT, SCHEMA_TEXT), (True, OBJECT_TEXT), ("true", OBJECT_TEXT), (False, None)],
    "regex": [("a+", "a+"), ("[0]", "[0]"), ("^é$", "^é$"), ("a" * MAX_GUIDE_BYTES, "a" * MAX_GUIDE_BYTES)],
    "choice": [(["yes", "no"], ("yes", "no")), ('["yes"]', ("yes",)), (["a", "b", "a"], ("a", "b")), (("a",), ("a",))],
    "cache_salt": [("", ""), ("ada", "ada"), ("a" * 256, "a" * 256)],
    "messages": [(CHAT, tuple(CHAT)), (CHAT * 3, tuple(CHAT * 3)), (CALL, tuple(CALL))],
}

WRONG_NUMBERS = ["", "many", "0x10", [], [1], {}, {"a": 1}, True, False, INF, -INF, NAN, "nan", "inf"]
BAD = {
    "n": [*WRONG_NUMBERS, 0, -1, 129, 1.5],
    "best_of": [*WRONG_NUMBERS, 0, -1, 129, 1.5],
    "num_beams": [*WRONG_NUMBERS, 0, -1, 33, 1.5],
    "length_penalty": [*WRONG_NUMBERS, -10.1, 11],
    "early_stopping": ["ever", "", 2, [], {}],
    "max_tokens": [*WRONG_NUMBERS, 0, -1, 1.5, "1.5", "1e3", "9" * 5000],
    "min_tokens": [*WRONG_NUMBERS, -1, 0.5],
    "temperature": [*WRONG_NUMBERS, -0.1, 100.5, HUGE, "1e999"],
    "top_p": [*WRONG_NUMBERS, 0, -0.5, 1.0001, "0.0"],
    "top_k": [*WRONG_NUMBERS, -2, 1.5],
    "min_p": [*WRONG_NUMBERS, -0.01, 1.01],
    "presence_penalty": [*WRONG_NUMBERS, -2.1, 2.1],
    "frequency_penalty": [*WRONG_NUMBERS, -2.1, 2.1],
    "repetition_penalty": [*WRONG_NUMBERS, 0, 0.001, -1, 101],
    "seed": [*WRONG_NUMBERS, 2**64, -(2**63) - 1, 0.5],
    "stop": [1, True, "", [""], ["a", ""], ["a", 1], [None], {}, ["x"] * 65],
    "stop_token_ids": [1, "1", [-1], [1.5], ["a"], [True], [None], [[1]], {}],
    "ignore_eos": [2, "yes", "", "maybe", [], [True], {}, 1.5, NAN],
    "include_stop_str_in_output": ["no", 3],
    "skip_special_tokens": ["off", -1],
    "logprobs": [*WRONG_NUMBERS, -1, 21, 0.5],
    "prompt_logprobs": [*WRONG_NUMBERS, -1, 21, 0.5],
    "bad_words": [1, True, "", [""], ["a", 1], {}, ["x"] * 65],
    "truncate_prompt_tokens": [*WRONG_NUMBERS, 0, -1, 1.5],
    "tools": ["f", {}, [1], ["f"], 5],
    "stream_interval": [*WRONG_NUMBERS, 0, -1, 10**6 + 1, 1.5],
    "deadline_ms": [*WRONG_NUMBERS, 0, -5, 10**10 + 1, HUGE],
    "priority": [*WRONG_NUMBERS, -101, 101, 0.5],
    "tenant": [1, True, ["ada"], {}, "a" * 257],
    "json": ["", "{", "[1]", [1], 5, "5", "null", '"x"', "[" * 10_000, {"a": "x" * MAX_GUIDE_BYTES}],
    "regex": ["", "a\\", 5, True, [], ["a"], {}, "a" * (MAX_GUIDE_BYTES + 1), "\ud800"],
    "choice": ["", "yes", [], [""], ["a", 1], "[]", "[1]", "[", "[" * 10_000, {"a": 1}, 5],
    "cache_salt": [1, True, ["ada"], {}, "a" * 257],
    "messages": ["hi", [], {}, [1], ["hi"], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}]],
}
BAD["choice"] += [["a"] * (MAX_CHOICES + 1), ["a" * MAX_GUIDE_BYTES, "b"]]
BAD["messages"] += [[{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "text"}]}], [*CHAT, 3], 7]
BAD["messages"] += [[{"role": "assistant", "tool_calls": []}], [{"role": "assistant", "tool_calls": "f"}]]
RANGES = {
    "n": "from 1 to 128",
    "best_of": "from 1 to 128, at least n",
    "num_beams": "from 1 to 32",
    "length_penalty": "from -10 to 10",
    "early_stopping": 'true, false or "never"',
    "max_tokens": "at least 1",
    "min_tokens": "at least 0",
    "temperature": "from 0 (greedy) to 100",
    "top_p": "above 0, at most 1",
    "top_k": "-1 or 0 for all",
    "min_p": "from 0 to 1",
    "presence_penalty": "from -2 to 2",
    "frequency_penalty": "from -2 to 2",
    "repetition_penalty": "from 0.01 to 100",
    "seed": "at most 64 bits",
    "stop": "at most 64",
    "stop_token_ids": "a list of at most 1024 token ids",
    "ignore_eos": "true or false",
    "include_stop_str_in_output": "true or false",
    "skip_special_tokens": "true or false",
    "logprobs": "from 0 to 20",
    "prompt_logprobs": "from 0 to 20",
    "bad_words": "at most 64",
    "truncate_prompt_tokens": "at least 1",
    "tools": "a list of JSON objects",
    "stream_interval": "from 1 to 1000000",
    "deadline_ms": "milliseconds from 1 to 10000000000",
    "priority": "from -100 (the most urgent) to 100",
    "tenant": "at most 256 characters",
    "json": "a JSON schema (an object or its text, at most 32 KiB), or true",
    "regex": "not empty, at most 32 KiB",
    "choice": "a list of 1 to 1024 strings",
    "cache_salt": "at most 256 characters",
    "messages": '{"role": string, "content": string}',
}


def cases(table):
    return [pytest.param(key, item, id=f"{key}-{index}") for key, items in table.items() for index, item in enumerate(items)]


def parse(values, defaults=None):
    return parse_sampling_parameters(values, defaults or {})


def test_the_samples_of_this_test_cover_every_parameter():
    assert set(GOOD) == set(BAD) == set(RANGES) == set(PARAMETERS)


@pytest.mark.parametrize(("key", "case"), cases(GOOD))
def test_a_good_value_is_read_as_a_number_and_as_a_string(key, case):
    given, expected = case
    read = parse({key: given, "max_tokens": given if key == "max_tokens" else 1000})[key]
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(("key", "value"), cases(BAD))
def test_a_bad_value_is_refused_naming_the_key_and_the_range(key, value):
    with pytest.raises(InvalidRequest) as caught:
        parse({key: value})
    assert caught.value.field == key
    assert str(caught.value).startswith(f"{key}: got ")
    assert RANGES[key] in str(caught.value).split("allowed: ")[1]


@pytest.mark.parametrize("key", PARAMETERS)
def test_null_means_the_default(key):
    assert parse({key: None}) == parse({})


def test_without_parameters_the_defaults_are_those_of_vllm():
    values = parse({})
    assert (values["max_tokens"], values["min_tokens"], values["temperature"], values["top_p"]) == (16, 0, 1.0, 1.0)
    assert (values["top_k"], values["min_p"], values["repetition_penalty"], values["seed"]) == (0, 0.0, 1.0, None)
    assert (values["stop"], values["ignore_eos"], values["skip_special_tokens"]) == ((), False, True)
    assert set(values) == set(PARAMETERS)


def test_the_models_defaults_count_before_ours_and_the_clients_values_before_both():
    defaults = {"temperature": 0.6, "top_k": 20, "max_tokens": 50}
    values = parse({"top_k": 3}, defaults)
    assert (values["temperature"], values["top_k"], values["max_tokens"], values["top_p"]) == (0.6, 3, 50, 1.0)
    assert parse({"temperature": None}, defaults)["temperature"] == 0.6


def test_a_models_default_of_no_randomness_is_greedy():
    assert parse({}, {"temperature": 1e-7})["temperature"] == 0.0


def test_the_alias_min_length_is_min_tokens_and_errors_name_what_was_sent():
    assert ALIASES == {"min_length": "min_tokens"}
    assert parse({"min_length": "4"})["min_tokens"] == 4
    with pytest.raises(InvalidRequest, match=r"^min_length: got 'x'"):
        parse({"min_length": "x"})


@pytest.mark.parametrize("key", ["top", "temprature", "max_new_tokens", "", "MAX_TOKENS"])
def test_an_unknown_key_is_refused_and_the_known_ones_are_listed(key):
    with pytest.raises(InvalidRequest, match=rf"^{key}: got 1, allowed: a known sampling parameter") as caught:
        parse({key: 1})
    assert all(name in str(caught.value) for name in PARAMETERS)


@pytest.mark.parametrize("key", sorted(IGNORED))
def test_keys_that_are_tritons_own_business_are_passed_over(key):
    assert parse({key: "anything"}) == parse({})


def test_no_key_has_two_meanings():
    assert not IGNORED & set(PARAMETERS)
    assert set(ALIASES.values()) <= set(PARAMETERS)


def test_one_guide_is_enough():
    assert guide_of(parse({})) is None and guide_of(parse({"json": False})) is None
    assert guide_of(parse({"regex": "a+", "json": "false"})) == ("regex", "a+")
    with pytest.raises(InvalidRequest, match=r"^choice: got \('a',\), allowed: one of json, regex, choice: regex is given too$"):
        guide_of(parse({"choice": ["a"], "regex": "a+"}))


def test_a_guided_answer_needs_its_end_of_sequence():
    with pytest.raises(InvalidRequest, match=r"^ignore_eos: got True, allowed: false with json"):
        guide_of(parse({"json": True, "ignore_eos": True}))


def test_best_of_is_nothing_or_at_least_the_number_of_answers():
    assert parse({"n": 3})["best_of"] is None
    assert parse({"n": 2, "best_of": 5})["best_of"] == 5
    with pytest.raises(InvalidRequest, match=r"^best_of: got 2, allowed: at least n \(3\)"):
        parse({"n": 3, "best_of": 2})


@pytest.mark.parametrize(("values", "key"), [({"n": 2}, "n"), ({"best_of": 2}, "best_of"), ({"n": 2, "best_of": 3}, "n")])
def test_several_greedy_answers_are_refused_because_they_are_the_same(values, key):
    with pytest.raises(InvalidRequest, match=rf"^{key}: got 2, allowed: 1 when temperature is 0"):
        parse(values | {"temperature": 0})


def test_beams_draw_nothing_so_no_temperature_is_meant():
    assert parse({"num_beams": 4})["temperature"] == 0.0
    assert parse({"num_beams": 4}, {"temperature": 0.7})["temperature"] == 0.0
    assert parse({"num_beams": 4, "temperature": "0"})["temperature"] == 0.0
    with pytest.raises(InvalidRequest, match=r"^temperature: got 0.7, allowed: 0 when num_beams is above 1"):
        parse({"num_beams": 4, "temperature": 0.7})


def test_as_many_answers_as_beams_may_be_asked_for():
    assert parse({"num_beams": 4, "n": 4})["n"] == 4
    with pytest.raises(InvalidRequest, match=r"^n: got 5, allowed: at most num_beams \(4\)"):
        parse({"num_beams": 4, "n": 5})


@pytest.mark.parametrize(("key", "value"), [("best_of", 4), ("logprobs", 0), ("json", True), ("regex", "a"), ("choice", ["a"])])
def test_what_does_not_go_with_beams_is_refused_by_its_name(key, value):
    with pytest.raises(InvalidRequest, match=rf"^{key}: got .*, allowed: no value when num_beams is above 1"):
        parse({"num_beams": 2, key: value})


def test_min_tokens_above_max_tokens_is_refused_whoever_set_it():
    with pytest.raises(InvalidRequest, match=r"^min_tokens: got 17, allowed: at most max_tokens \(16\)"):
        parse({"min_tokens": 17})
    with pytest.raises(InvalidRequest, match=r"at most max_tokens \(4\)"):
        parse({"min_length": 5, "max_tokens": "4"})
    with pytest.raises(InvalidRequest, match=r"at most max_tokens \(2\)"):
        parse({"max_tokens": 2}, {"min_tokens": 3})
    assert parse({"min_tokens": 16})["min_tokens"] == 16


@pytest.mark.parametrize(("text", "truth"), [("true", True), ("TRUE", True), (" 1 ", True), ("false", False), ("0", False)])
def test_the_word_false_is_false(text, truth):
    assert read_truth(text) is truth


@pytest.mark.parametrize("value", ["", "none", "falsey", 2, -1, None, 0.5, [], b"true"])
def test_what_is_no_truth_value_is_no_guess(value):
    with pytest.raises(ValueError):
        read_truth(value)
