"""Triton's tensors to a request and answers back to tensors."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from fastserve.core.request import FinishReason
from fastserve.errors import InvalidRequest
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS
from fastserve.triton.protocol import (
    TENSORS_ONLY,
    Answer,
    Prompt,
    ReturnFlags,
    encode_answers,
    parse_generation,
)

OPTIONAL_OUTPUTS = [field.name for field in dataclasses.fields(ReturnFlags)]
NUMPY_TYPES = {"TYPE_STRING": np.object_, "TYPE_FP32": np.float32, "TYPE_UINT32": np.uint32, "TYPE_INT64": np.int64}


def text(value):
    return np.array([value.encode() if isinstance(value, str) else value], np.object_)


def parse(parameters=None, **tensors):
    return parse_generation({name: np.asarray(tensor) for name, tensor in tensors.items()}, parameters or {})


def sampling(document):
    """The sampling parameters that the text ``document`` in their tensor gives."""
    return parse(text_input=text("a"), sampling_parameters=text(document))[0].parameters


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_with_nothing_but_text_has_every_default():
    item, flags = parse(text_input=text("Grüße"))
    assert (item.text, item.input_ids, item.stream, item.exclude_input_in_output) == ("Grüße", None, False, None)
    assert (dict(item.parameters), item.return_logprobs, item.return_cumulative_logprob) == ({}, False, False)
    assert flags == ReturnFlags()


@pytest.mark.parametrize(
    "tensor",
    [
        np.array([b"hi"], np.object_),
        np.array([[b"hi"]], np.object_),
        np.array(["hi"], np.object_),
        np.array([b"hi"]),
        np.array(b"hi", np.object_),
    ],
    ids=["object [1]", "object [1,1]", "str", "fixed-width bytes", "scalar"],
)
def test_text_is_read_from_every_array_a_server_may_hand_over(tensor):
    assert parse(text_input=tensor)[0].text == "hi"


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize("value", [True, False])
def test_truth_values_are_read_from_flat_and_batched_tensors(shape, value):
    item, flags = parse(
        text_input=text("a"),
        stream=np.full(shape, value),
        exclude_input_in_output=np.full(shape, value),
        return_output_ids=np.full(shape, value),
    )
    assert (item.stream, item.exclude_input_in_output, flags.output_ids) == (value, value, value)
    assert type(item.stream) is bool


def test_input_ids_are_plain_numbers_whatever_the_shape():
    assert parse(input_ids=np.array([3, 4], np.int64))[0].input_ids == [3, 4]
    assert parse(input_ids=np.array([[3, 4]], np.int64))[0].input_ids == [3, 4]
    assert parse(input_ids=np.empty(0, np.int64))[0].input_ids == []
    assert all(type(value) is int for value in parse(input_ids=np.array([2**40], np.int64))[0].input_ids)


def test_token_ids_of_several_prompts_are_refused_not_joined():
    with pytest.raises(InvalidRequest, match=r"^input_ids: got '2 rows', allowed: one row: a request has one prompt"):
        parse(input_ids=np.array([[3, 4], [5, 6]], np.int64))


@pytest.mark.parametrize("name", OPTIONAL_OUTPUTS)
def test_each_optional_output_is_asked_for_on_its_own(name):
    _, flags = parse(text_input=text("a"), **{f"return_{name}": np.array([True])})
    assert flags == ReturnFlags(**{name: True})


def test_the_engine_computes_log_probabilities_only_for_those_who_want_their_sum():
    assert parse(text_input=text("a"), return_cumulative_logprob=np.array([True]))[0].return_cumulative_logprob
    assert not parse(text_input=text("a"), return_finish_reason=np.array([True]))[0].return_cumulative_logprob
    assert parse(text_input=text("a"), return_logprobs=np.array([True]))[0].return_logprobs
    assert not parse(text_input=text("a"), return_logprobs=np.array([False]))[0].return_logprobs


@pytest.mark.parametrize("name", ["text_input", "sampling_parameters"])
def test_text_that_is_not_utf8_names_the_field_and_the_byte(name):
    with pytest.raises(InvalidRequest, match=rf"^{name}: got .*valid UTF-8 \(byte 3 is not\)"):
        parse(**({"text_input": text("a")} | {name: text(b"abc\xffdef")}))


@pytest.mark.parametrize(
    "name", ["text_input", "sampling_parameters", "stream", "exclude_input_in_output", "return_finish_reason"]
)
@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_values_names_the_field_and_the_count(name, count):
    tensor = np.array([b"{}"] * count, np.object_) if name.endswith(("input", "parameters")) else np.ones(count, bool)
    with pytest.raises(InvalidRequest, match=rf"^{name}: got '{count} values', allowed: one value"):
        parse(**({"text_input": text("a")} | {name: tensor}))


# --- sampling parameters ----------------------------------------------------------------------------------------------


def test_sampling_parameters_come_from_the_json_object():
    assert sampling('{"max_tokens": 5, "stop": ["é"], "top_p": null}') == {"max_tokens": 5, "stop": ["é"], "top_p": None}
    assert sampling(" {} ") == {}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "max_tokens=5",
        "{'max_tokens': 5}",
        "[]",
        "5",
        "null",
        '"{}"',
        "true",
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda document: document[:20] or "empty",
)
def test_what_is_no_json_object_is_refused_with_an_example(document):
    with pytest.raises(InvalidRequest, match=r'^sampling_parameters: got .*a JSON object such as {"max_tokens": 100}') as caught:
        sampling(document)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "document", ['{"stop": "\\ud800"}', '{"\\ud800": 1}', '{"messages": [{"role": "user", "content": "\\udfff!"}]}']
)
def test_half_a_surrogate_pair_is_refused_because_no_message_could_carry_it(document):
    with pytest.raises(InvalidRequest, match=r"^sampling_parameters: ") as caught:
        sampling(document)
    str(caught.value).encode()  # what the client is told is text


def test_a_whole_surrogate_pair_is_a_character():
    assert sampling('{"stop": "\\ud83d\\ude00"}') == {"stop": "😀"}


def test_numbers_that_json_does_not_have_are_left_to_the_parameters_own_check():
    values = sampling('{"temperature": NaN, "top_p": Infinity, "max_tokens": 1e400}')
    assert np.isnan(values["temperature"])
    assert (values["top_p"], values["max_tokens"]) == (float("inf"), float("inf"))


def test_deeply_nested_values_are_no_crash():
    depth = 500
    document = '{"stop": ' + "[" * depth + "]" * depth + "}"
    assert set(sampling(document)) == {"stop"}


@pytest.mark.parametrize("value", [100, "100", 0.5, True])
def test_request_parameters_count_where_there_is_no_tensor(value):
    item, _ = parse({"max_tokens": value, "timeout": 5}, text_input=text("a"))
    assert item.parameters == {"max_tokens": value, "timeout": 5}


def test_the_tensor_wins_over_request_parameters():
    item, _ = parse({"max_tokens": 7, "temperature": "0"}, text_input=text("a"), sampling_parameters=text('{"max_tokens": 5}'))
    assert item.parameters == {"max_tokens": 5}


@pytest.mark.parametrize(("value", "truth"), [(True, True), ("true", True), ("false", False), (0, False), ("1", True)])
def test_flags_may_come_as_request_parameters_and_are_then_no_sampling_parameters(value, truth):
    item, flags = parse({"stream": value, "return_finish_reason": value, "seed": 3}, text_input=text("a"))
    assert (item.stream, flags.finish_reason) == (truth, truth)
    assert item.parameters == {"seed": 3}


def test_a_flags_tensor_wins_over_its_request_parameter():
    assert parse({"stream": True}, text_input=text("a"), stream=np.array([False]))[0].stream is False


def test_a_flag_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(InvalidRequest, match=r"^stream: got 'perhaps', allowed: true or false"):
        parse({"stream": "perhaps"}, text_input=text("a"))


def test_no_input_of_the_contract_is_mistaken_for_a_sampling_parameter():
    given = {spec.name: True for spec in TEXT_GENERATION_INPUTS if spec.name not in TENSORS_ONLY}
    assert parse(given)[0].parameters == {}


@pytest.mark.parametrize("name", TENSORS_ONLY)
def test_a_prompt_or_sampling_parameters_sent_as_a_request_parameter_are_refused_not_ignored(name):
    with pytest.raises(InvalidRequest, match=f"^{name}: got 'x', allowed: an input tensor of this name"):
        parse({name: "x"}, input_ids=np.array([1], np.int64))


# --- answers ----------------------------------------------------------------------------------------------------------

ALL = ReturnFlags(**dict.fromkeys(OPTIONAL_OUTPUTS, True))
ANSWER = Answer("Grüße", (5, 6, 7), -1.25, FinishReason.LENGTH, '[{"5": {}}]')
OTHER = Answer("", (8,), -0.5, None)
PROMPT = Prompt(4, "[null]")


def encode_answer(answer, flags):
    return encode_answers([answer], Prompt(4), flags, "{}")


def test_an_answer_is_its_text_when_nothing_else_was_asked_for():
    tensors = encode_answer(ANSWER, ReturnFlags())
    assert set(tensors) == {"text_output"}
    assert tensors["text_output"].tolist() == ["Grüße".encode()]


def test_every_output_has_the_type_and_number_of_dimensions_of_the_contract():
    contract = {spec.name: spec for spec in TEXT_GENERATION_OUTPUTS}
    tensors = encode_answers([ANSWER], PROMPT, ALL, "{}")
    assert set(tensors) == set(contract)
    for name, tensor in tensors.items():
        assert tensor.dtype == NUMPY_TYPES[contract[name].data_type], name
        assert tensor.ndim == 1, name
        assert all(dim in (-1, size) for dim, size in zip(contract[name].dims, tensor.shape, strict=True)), name


def test_the_optional_outputs_say_what_the_answer_says():
    tensors = encode_answer(ANSWER, ALL)
    assert tensors["finish_reason"].tolist() == [b"length"]
    assert tensors["cumulative_logprob"].tolist() == [-1.25]
    assert tensors["num_input_tokens"].tolist() == [4]
    assert tensors["num_output_tokens"].tolist() == [3]
    assert tensors["output_ids"].tolist() == [5, 6, 7]
    assert tensors["logprobs"].tolist() == [b'[{"5": {}}]']


def test_several_answers_have_an_element_each_and_their_ids_follow_one_another():
    tensors = encode_answers([ANSWER, OTHER], PROMPT, ALL)
    assert "timing" not in tensors
    assert tensors["text_output"].tolist() == ["Grüße".encode(), b""]
    assert tensors["finish_reason"].tolist() == [b"length", b"None"]
    assert tensors["cumulative_logprob"].tolist() == [-1.25, -0.5]
    assert tensors["logprobs"].tolist() == [b'[{"5": {}}]', b"null"]
    assert (tensors["num_output_tokens"].tolist(), tensors["output_ids"].tolist()) == ([3, 1], [5, 6, 7, 8])
    assert (tensors["num_input_tokens"].tolist(), tensors["prompt_logprobs"].tolist()) == ([4], [b"[null]"])


@pytest.mark.parametrize(("reason", "shown"), [(None, b"None"), (FinishReason.STOP, b"stop"), (FinishReason.LENGTH, b"length")])
def test_the_finish_reason_reads_none_until_the_end(reason, shown):
    answer = Answer("", (), 0.0, reason)
    assert encode_answer(answer, ReturnFlags(finish_reason=True))["finish_reason"].tolist() == [shown]


@pytest.mark.parametrize("name", OPTIONAL_OUTPUTS)
def test_each_flag_adds_exactly_its_own_output(name):
    assert set(encode_answer(ANSWER, ReturnFlags(**{name: True}))) == {"text_output", name}


def test_an_answer_without_tokens_has_empty_ids_of_the_right_type():
    ids = encode_answer(Answer("", (), 0.0, None), ReturnFlags(output_ids=True))["output_ids"]
    assert (ids.shape, ids.dtype) == ((0,), np.int64)


def test_parameters_read_from_a_clients_json_survive_unchanged():
    values = {"stop": ["\n\n", "終"], "stop_token_ids": [1, 2], "temperature": 0.1, "ignore_eos": False, "seed": 2**64 - 1}
    assert sampling(json.dumps(values)) == values
