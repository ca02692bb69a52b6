"""What the sampling parameters do: seeds, and every way an answer can end."""

from __future__ import annotations

import pytest
import transformers

from tests.e2e.test_contract_wire import RETURNS, ask_grpc, ask_http, grpc_message, question

PROMPT = "The quick brown fox"
EOS_IDS = {0, 2}
FREE = {"temperature": 1.0, "max_tokens": 60}


@pytest.fixture(scope="module")
def tokenizer(sources):
    return transformers.AutoTokenizer.from_pretrained(sources["llama"])


def answer(server, parameters, model="llama"):
    """The whole answer without its prompt."""
    (row,) = ask_http(server, model, question(parameters, text_input=PROMPT, exclude_input_in_output=True, returns=RETURNS))
    return row


def deltas(server, parameters):
    rows = ask_grpc(server, grpc_message("llama", question(parameters, text_input=PROMPT, stream=True, returns=RETURNS)))
    return [row.values for row in rows]


@pytest.fixture(scope="module")
def ending(server):
    """Parameters whose answer ends by itself after some tokens, and that answer."""
    for seed in range(100):
        row = answer(server, FREE | {"seed": seed})
        if row["finish_reason"] == ["stop"] and 3 <= len(row["output_ids"]) <= 40:
            return FREE | {"seed": seed}, row
    raise AssertionError("no seed of 100 ends by itself")


@pytest.fixture(scope="module")
def free_text(server, tokenizer):
    """Parameters of a long answer, and two tokens in it that are one printable character each: (parameters, row, index)."""
    for seed in range(100):
        parameters = FREE | {"seed": seed, "ignore_eos": True}
        row = answer(server, parameters)
        texts = [tokenizer.decode([token]) for token in row["output_ids"]]
        for index in range(5, len(texts) - 1):
            pair = texts[index] + texts[index + 1]
            both_printable = all(text.isascii() and text.isprintable() and len(text) == 1 for text in texts[index : index + 2])
            before = tokenizer.decode(row["output_ids"][:index])
            if both_printable and pair not in before + texts[index] and row["text_output"][0].startswith(before + pair):
                return parameters, row, index
    raise AssertionError("no such pair in 100 answers")


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(server):
    first, again, other = (answer(server, FREE | {"seed": seed, "ignore_eos": True}) for seed in (5, 5, 6))
    assert first == again and first["output_ids"] != other["output_ids"]


def test_requests_without_a_seed_differ(server):
    answers = {tuple(answer(server, FREE | {"ignore_eos": True})["output_ids"]) for _ in range(4)}
    assert len(answers) == 4


@pytest.mark.parametrize("narrow", [{"temperature": 0}, {"temperature": 1e-9}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}])
def test_parameters_that_leave_one_token_to_choose_are_greedy_whatever_the_seed(server, narrow):
    greedy = answer(server, {"temperature": 0, "max_tokens": 60, "ignore_eos": True})
    assert answer(server, FREE | {"seed": 3, "ignore_eos": True} | narrow)["output_ids"] == greedy["output_ids"]


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 100}])
def test_penalties_make_an_answer_repeat_itself_less(server, penalty):
    parameters = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    free, penalised = answer(server, parameters)["output_ids"], answer(server, parameters | penalty)["output_ids"]
    assert len(set(penalised)) > len(set(free))


def test_an_end_token_ends_the_answer_and_is_not_in_its_text(server, tokenizer, ending):
    parameters, row = ending
    ids = row["output_ids"]
    assert ids[-1] in EOS_IDS and not EOS_IDS & set(ids[:-1])
    shown = answer(server, parameters | {"skip_special_tokens": False})
    assert shown["text_output"] == row["text_output"] == [tokenizer.decode(ids[:-1], skip_special_tokens=False)]


def test_the_end_token_can_be_included(server, tokenizer, ending):
    parameters, row = ending
    included = answer(server, parameters | {"include_stop_str_in_output": True, "skip_special_tokens": False})
    assert included["text_output"] == [tokenizer.decode(row["output_ids"], skip_special_tokens=False)]
    assert included["text_output"][0].endswith(tokenizer.decode(row["output_ids"][-1:], skip_special_tokens=False))


def test_ignore_eos_goes_on_after_the_end_token(server, ending):
    parameters, row = ending
    on = answer(server, parameters | {"ignore_eos": True})
    assert on["finish_reason"] == ["length"] and on["num_output_tokens"] == [60]
    assert on["output_ids"][: len(row["output_ids"])] == row["output_ids"]


def test_min_tokens_forbids_the_end_token_until_then(server, ending):
    parameters, row = ending
    wanted = len(row["output_ids"]) + 5
    longer = answer(server, parameters | {"min_tokens": wanted})["output_ids"]
    assert len(longer) >= wanted and not EOS_IDS & set(longer[:wanted])


@pytest.mark.parametrize("as_list", [False, True], ids=["string", "list"])
def test_a_stop_string_of_two_tokens_ends_the_answer_before_it(server, tokenizer, free_text, as_list):
    parameters, row, index = free_text
    stop = tokenizer.decode(row["output_ids"][index : index + 2])
    parameters = parameters | {"stop": ["never there", stop] if as_list else stop}
    stopped = answer(server, parameters)
    assert stopped["finish_reason"] == ["stop"]
    assert stopped["output_ids"] == row["output_ids"][: index + 2] and stopped["num_output_tokens"] == [index + 2]
    assert stopped["text_output"] == [row["text_output"][0][: row["text_output"][0].index(stop)]]
    rows = deltas(server, parameters)
    assert "".join(each["text_output"][0] for each in rows) == stopped["text_output"][0]
    assert [each["finish_reason"][0] for each in rows] == ["None"] * (len(rows) - 1) + ["stop"]
    assert [token for each in rows for token in each["output_ids"]] == stopped["output_ids"]


def test_a_stop_string_can_be_included(server, tokenizer, free_text):
    parameters, row, index = free_text
    stop = tokenizer.decode(row["output_ids"][index : index + 2])
    included = answer(server, parameters | {"stop": [stop], "include_stop_str_in_output": True})
    text = row["text_output"][0]
    assert included["text_output"] == [text[: text.index(stop) + len(stop)]] and included["finish_reason"] == ["stop"]


def test_a_stop_string_counts_only_after_min_tokens(server, tokenizer, free_text):
    parameters, row, index = free_text
    stop = tokenizer.decode(row["output_ids"][index : index + 2])
    later = answer(server, parameters | {"stop": stop, "min_tokens": index + 2})
    assert later["num_output_tokens"][0] > index + 2 and stop in later["text_output"][0]


def test_of_several_stop_strings_the_first_in_the_text_counts(server, tokenizer, free_text):
    parameters, row, index = free_text
    early, late = row["text_output"][0][0], tokenizer.decode(row["output_ids"][index : index + 2])
    assert answer(server, parameters | {"stop": [late, early]})["text_output"] == [""]


def test_the_beginning_of_a_stop_string_that_does_not_come_is_not_lost(server, tokenizer, free_text):
    parameters, row, index = free_text
    almost = tokenizer.decode(row["output_ids"][index : index + 2]) + "\u2603"
    rows = deltas(server, parameters | {"stop": almost})
    assert "".join(each["text_output"][0] for each in rows) == row["text_output"][0]
    last_words = deltas(server, parameters | {"stop": almost, "max_tokens": index + 2})
    assert "".join(each["text_output"][0] for each in last_words) == tokenizer.decode(row["output_ids"][: index + 2])


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_id_ends_the_answer(server, tokenizer, free_text, include):
    parameters, row, index = free_text
    ids = row["output_ids"]
    place = ids.index(ids[index])
    stopped = answer(server, parameters | {"stop_token_ids": [ids[index]], "include_stop_str_in_output": include})
    assert stopped["output_ids"] == ids[: place + 1] and stopped["finish_reason"] == ["stop"]
    assert stopped["text_output"] == [tokenizer.decode(ids[: place + 1] if include else ids[:place], skip_special_tokens=True)]


def test_a_bad_word_does_not_come_up(server, tokenizer, free_text):
    parameters, row, index = free_text
    pair = tokenizer.decode(row["output_ids"][index : index + 2])
    clean = answer(server, parameters | {"bad_words": [pair]})
    assert pair not in clean["text_output"][0]
    assert clean["output_ids"][: index + 1] == row["output_ids"][: index + 1]


def test_max_tokens_is_exact(server):
    for count in (1, 2, 17):
        row = answer(server, FREE | {"max_tokens": count, "ignore_eos": True})
        assert row["num_output_tokens"] == [count] and row["finish_reason"] == ["length"]


def test_a_deadline_that_is_kept_changes_nothing(server):
    parameters = FREE | {"seed": 1}
    assert answer(server, parameters | {"deadline_ms": 60_000}) == answer(server, parameters)
