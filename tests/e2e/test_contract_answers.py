"""What an answer says: the same over every protocol, streamed or whole, and true."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers

from tests.e2e.test_contract_wire import RETURNS, Refused, ask_everywhere, ask_grpc, ask_http, grpc_message, post, question

PROMPT = "The quick brown fox"
IDS = [40, 41, 42]
MODELS = ("llama", "gpt2", "qwen2", "qwen3")
GREEDY = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
SAMPLED = GREEDY | {"temperature": 1.0, "seed": 7}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où est la gare ?"}]

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "la météo"}}]


@pytest.fixture(scope="module")
def tokenizer(sources):
    """All served models have this one."""
    return transformers.AutoTokenizer.from_pretrained(sources["llama"])


def joined(rows, name):
    """What every response says in one output, one after the other."""
    return list(itertools.chain.from_iterable(row[name] for row in rows))


def text_of(rows):
    return "".join(joined(rows, "text_output"))


def whole(server, model, parameters, **inputs):
    (row,) = ask_http(server, model, question(parameters, returns=RETURNS, **inputs))
    return row


def streamed(server, model, parameters, **inputs):
    message = grpc_message(model, question(parameters, returns=RETURNS, stream=True, **inputs))
    return [row.values for row in ask_grpc(server, message)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("inputs", [{"text_input": PROMPT}, {"input_ids": IDS}], ids=["text", "ids"])
def test_every_protocol_gives_the_same_answer_streamed_or_whole(server, model, parameters, inputs):
    asked = question(parameters, returns=RETURNS, stream=True, exclude_input_in_output=True, **inputs)
    answers = ask_everywhere(server, model, asked)
    assert len(answers["generate"]) == 1
    # One response for each token, or for several (on a busy machine for all) where the engine was faster than the way back.
    assert all(len(answers[protocol]) <= 60 for protocol in ("grpc", "generate_stream"))
    expected = answers["grpc"]
    for rows in answers.values():
        assert text_of(rows) == text_of(expected)
        assert joined(rows, "output_ids") == joined(expected, "output_ids")
        assert rows[-1]["finish_reason"] == ["length"]
        assert rows[-1]["num_input_tokens"] == expected[-1]["num_input_tokens"]
        assert rows[-1]["cumulative_logprob"] == pytest.approx(expected[-1]["cumulative_logprob"], abs=1e-5)
        assert sum(joined(rows, "num_output_tokens")) == 60


@pytest.mark.parametrize("inputs", [{"text_input": PROMPT}, {"input_ids": IDS}], ids=["text", "ids"])
def test_the_finish_reason_is_none_until_the_last_delta(server, inputs):
    rows = streamed(server, "llama", GREEDY, **inputs)
    assert joined(rows, "finish_reason") == ["None"] * (len(rows) - 1) + ["length"]


def test_each_delta_counts_its_own_tokens_and_repeats_the_prompts(server, tokenizer):
    rows = streamed(server, "llama", GREEDY, text_input=PROMPT)
    assert joined(rows, "num_output_tokens") == [len(row["output_ids"]) for row in rows]
    assert sum(joined(rows, "num_output_tokens")) == 60
    assert joined(rows, "num_input_tokens") == [len(tokenizer(PROMPT)["input_ids"])] * len(rows)


def test_max_tokens_is_16_when_nobody_says_otherwise(server):
    (row,) = ask_http(server, "llama", question({"ignore_eos": True}, text_input=PROMPT, returns=RETURNS))
    assert row["num_output_tokens"] == [16] and len(row["output_ids"]) == 16


def test_the_models_length_ends_an_answer_before_max_tokens(server):
    row = whole(server, "llama", GREEDY | {"max_tokens": 10_000}, input_ids=[40] * 200)
    assert row["finish_reason"] == ["length"] and row["num_output_tokens"] == [256 - 200]


def test_the_cumulative_logprob_is_the_models_own_whatever_is_sampled(server, sources):
    model = transformers.AutoModelForCausalLM.from_pretrained(sources["llama"]).eval()
    rows = streamed(server, "llama", SAMPLED | {"temperature": 1.5, "top_k": 50, "repetition_penalty": 1.2}, input_ids=IDS)
    ids = joined(rows, "output_ids")
    with torch.no_grad():
        logits = model(torch.tensor([IDS + ids])).logits[0, len(IDS) - 1 : -1]
    each = torch.log_softmax(logits.double(), -1)[torch.arange(len(ids)), torch.tensor(ids)]
    sums = torch.cumsum(each, 0).tolist()
    ends = itertools.accumulate(joined(rows, "num_output_tokens"))  # tokens up to and with each response
    assert joined(rows, "cumulative_logprob") == pytest.approx([sums[end - 1] for end in ends], abs=1e-2)


def test_a_whole_answer_begins_with_the_prompt_unless_it_is_excluded(server):
    alone = whole(server, "llama", GREEDY, text_input=PROMPT, exclude_input_in_output=True)["text_output"][0]
    assert not alone.startswith(PROMPT)
    for extra in ({}, {"exclude_input_in_output": False}):
        assert whole(server, "llama", GREEDY, text_input=PROMPT, **extra)["text_output"] == [PROMPT + alone]
        (row,) = ask_grpc(server, grpc_message("llama", question(GREEDY, text_input=PROMPT, stream=False, **extra)))
        assert row.values["text_output"] == [PROMPT + alone]


def test_a_prompt_of_ids_is_put_before_the_answer_as_text(server, tokenizer):
    alone = whole(server, "llama", GREEDY, input_ids=IDS, exclude_input_in_output=True)["text_output"][0]
    assert whole(server, "llama", GREEDY, input_ids=IDS)["text_output"] == [tokenizer.decode(IDS) + alone]


def test_a_stream_sends_only_what_is_new(server):
    alone = whole(server, "llama", GREEDY, text_input=PROMPT, exclude_input_in_output=True)["text_output"][0]
    assert text_of(streamed(server, "llama", GREEDY, text_input=PROMPT)) == alone
    assert text_of(streamed(server, "llama", GREEDY, text_input=PROMPT, exclude_input_in_output=True)) == alone


def test_a_stream_that_asks_for_the_prompt_is_refused(server):
    with pytest.raises(Refused) as caught:
        streamed(server, "llama", GREEDY, text_input=PROMPT, exclude_input_in_output=False)
    assert caught.value.message.startswith("exclude_input_in_output: got False, allowed: true when stream is true")


def test_generate_wants_one_response_and_says_so_when_it_is_told_to_stream(server):
    """Triton's own answer, with status 200: our deltas do not fit a ``generate``."""
    answer = post(server, "llama", question(GREEDY, text_input=PROMPT, stream=True))
    assert answer.status_code == 200 and "use generate stream" in answer.json()["error"]


def test_generate_stream_without_stream_gives_one_event_with_the_whole_answer(server):
    rows = ask_http(server, "llama", question(GREEDY, text_input=PROMPT, returns=RETURNS), "generate_stream")
    assert rows == [whole(server, "llama", GREEDY, text_input=PROMPT)]


def test_text_and_its_ids_ask_the_same(server, tokenizer):
    text = "naïve 日本 😀 the other thing"
    by_text, by_ids = (
        whole(server, "llama", GREEDY, **prompt) for prompt in ({"text_input": text}, {"input_ids": tokenizer(text)["input_ids"]})
    )
    assert by_text == by_ids and by_text["text_output"][0].startswith(text)


def test_messages_are_rendered_by_the_models_chat_template(server, tokenizer):
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    by_messages = streamed(server, "llama", GREEDY | {"messages": MESSAGES})
    by_ids = streamed(server, "llama", GREEDY, input_ids=ids)
    assert joined(by_messages, "output_ids") == joined(by_ids, "output_ids") and text_of(by_messages) == text_of(by_ids)
    assert by_messages[0]["num_input_tokens"] == [len(ids)]


def test_tools_are_shown_to_the_model_by_its_chat_template(server, tokenizer):
    rendered = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert "météo" in rendered
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    by_messages = streamed(server, "llama", GREEDY | {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 8})
    by_ids = streamed(server, "llama", GREEDY | {"max_tokens": 8}, input_ids=ids)
    assert joined(by_messages, "output_ids") == joined(by_ids, "output_ids")
    assert by_messages[0]["num_input_tokens"] == [len(ids)]


def test_a_truncated_prompt_is_its_last_tokens(server, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    by_text = streamed(server, "llama", GREEDY | {"truncate_prompt_tokens": 5}, text_input=PROMPT)
    by_ids = streamed(server, "llama", GREEDY, input_ids=ids[-5:])
    assert joined(by_text, "output_ids") == joined(by_ids, "output_ids") and by_text[0]["num_input_tokens"] == [5]


def test_the_answer_to_messages_is_the_assistants_turn_alone(server):
    by_messages = whole(server, "llama", GREEDY | {"messages": MESSAGES})
    assert by_messages["text_output"] == [text_of(streamed(server, "llama", GREEDY | {"messages": MESSAGES}))]


@pytest.mark.parametrize("model", MODELS)
def test_deltas_never_split_a_character(server, tokenizer, model):
    """The tiny models speak bytes: of many answers some contain characters of several tokens, and invalid bytes as well."""
    split_characters = 0
    for seed in range(12):
        rows = streamed(server, model, SAMPLED | {"seed": seed, "max_tokens": 120}, text_input=PROMPT)
        truth = tokenizer.decode(joined(rows, "output_ids"), skip_special_tokens=True)
        assert text_of(rows) == truth
        excluded = whole(
            server, model, SAMPLED | {"seed": seed, "max_tokens": 120}, text_input=PROMPT, exclude_input_in_output=True
        )
        assert excluded["text_output"] == [truth]
        split_characters += sum(len(character.encode()) > 1 and character != "\ufffd" for character in truth)
    assert split_characters > 0, "no character of several bytes came up: ask for more tokens"


def test_special_tokens_are_left_out_of_the_text_unless_asked_for(server, tokenizer):
    found = 0
    for seed in range(20):
        parameters = SAMPLED | {"seed": seed, "max_tokens": 100}
        row = whole(server, "llama", parameters, text_input="a", exclude_input_in_output=True)
        shown = whole(server, "llama", parameters | {"skip_special_tokens": False}, text_input="a", exclude_input_in_output=True)
        assert row["output_ids"] == shown["output_ids"]
        assert row["text_output"] == [tokenizer.decode(row["output_ids"], skip_special_tokens=True)]
        assert shown["text_output"] == [tokenizer.decode(row["output_ids"], skip_special_tokens=False)]
        found += row["text_output"] != shown["text_output"]
    assert found, "no special token came up: ask for more tokens"
