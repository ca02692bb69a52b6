"""Text generation: from a client's request to tokens, and from tokens back to the client's text."""

from __future__ import annotations

import pytest

from fastserve.errors import InvalidRequest, ManifestError, RequestTooLong
from fastserve.manifest import TokenizerSpec
from fastserve.tasks.text_generation import GenerationInput, TextGeneration
from fastserve.text.templates import ChatTemplate
from tests.doubles import ByteTokenizer, make_manifest

CHAT = [{"role": "user", "content": "hi"}]
EOS, BOS = 257, 256


def make_task(*, template="<{{ messages[0].content }}>", seeds=(11, 12, 13), deadline_ms=0, **manifest):
    seeds = iter(seeds)
    return TextGeneration(
        make_manifest(**manifest),
        ByteTokenizer(),
        ChatTemplate(template, {}) if template is not None else None,
        max_model_len=128,
        random_seed=lambda: next(seeds),
        default_deadline_ms=deadline_ms,
    )


def prepare(task=None, *, now=0.0, stream=False, exclude=None, **fields):
    """``fields``: text, input_ids, return_...; anything else is a sampling parameter."""
    names = ("text", "input_ids", "return_cumulative_logprob", "return_logprobs", "return_timing")
    own = {name: fields.pop(name) for name in names if name in fields}
    item = GenerationInput(stream=stream, exclude_input_in_output=exclude, parameters=fields, **own)
    return (task or make_task()).prepare(item, 5, now)


# --- the prompt -------------------------------------------------------------------------------------------------------


def test_text_is_tokenised_with_the_models_begin_token():
    request = prepare(text="hé", now=3.5).request
    assert request.prompt_token_ids == (BOS, *"hé".encode())
    assert request.request_id == 5


def test_input_ids_are_the_prompt_as_they_are():
    assert prepare(input_ids=[5, 0, 257]).request.prompt_token_ids == (5, 0, 257)


def test_messages_are_rendered_and_get_no_second_begin_token():
    assert prepare(messages=CHAT).request.prompt_token_ids == tuple(b"<hi>")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"text": "a", "input_ids": [1]}, ("input_ids", "text_input")),
        ({"text": "a", "messages": CHAT}, ("messages", "text_input")),
        ({"input_ids": [1], "messages": CHAT}, ("input_ids", "messages")),
        ({"text": "a", "input_ids": [1], "messages": CHAT}, ("input_ids", "messages")),
    ],
)
def test_a_prompt_given_twice_is_refused_naming_both(fields, names):
    with pytest.raises(InvalidRequest, match=rf"either {names[0]} or {names[1]}, not both"):
        prepare(**fields)


def test_an_empty_text_beside_the_real_prompt_is_no_second_prompt():
    assert prepare(text="", input_ids=[1]).request.prompt_token_ids == (1,)
    assert prepare(text="", messages=CHAT).request.prompt_token_ids == tuple(b"<hi>")


@pytest.mark.parametrize("fields", [{}, {"text": None}, {"text": ""}])
def test_a_request_without_prompt_is_refused_naming_the_ways_to_give_one(fields):
    with pytest.raises(InvalidRequest, match=r"^text_input: got '', allowed: .*input_ids, or messages"):
        prepare(**fields)


def test_a_text_that_gives_no_token_is_refused():
    task = make_task()
    task.tokenizer.encode = lambda text, **_: ()
    with pytest.raises(InvalidRequest, match=r"^text_input: got \[\], allowed: at least one token"):
        prepare(task, text=" ")


@pytest.mark.parametrize(("ids", "shown"), [([-1], "-1"), ([258], "258"), ([1, 2, 10**12], "1000000000000")])
def test_token_ids_outside_the_vocabulary_are_refused(ids, shown):
    with pytest.raises(InvalidRequest, match=rf"^input_ids: got {shown}, allowed: token ids from 0 to 257"):
        prepare(input_ids=ids)


def test_messages_that_render_to_nothing_are_refused():
    task = make_task(template="{% for turn in messages %}{{ turn.content }}{% endfor %}")
    with pytest.raises(InvalidRequest, match=r"^messages: got \[\], allowed: at least one token"):
        prepare(task, messages=[{"role": "user", "content": ""}])


def test_a_text_with_a_token_the_model_has_no_row_for_is_refused():
    task = make_task()
    task.tokenizer.encode = lambda text, **_: (1, 258)
    with pytest.raises(InvalidRequest, match=r"^text_input: got 258, allowed: token ids from 0 to 257"):
        prepare(task, text="a")


def test_a_text_that_could_never_fit_is_refused_before_it_is_tokenised():
    task = make_task()
    task.tokenizer.encode = None
    with pytest.raises(RequestTooLong, match=r"^text_input: got '513 bytes', allowed: at most 512"):
        prepare(task, text="a" * 513)


def test_a_long_text_is_tokenised_when_a_token_may_stand_for_any_number_of_bytes():
    tokenizer = ByteTokenizer()
    tokenizer.longest_token_bytes = None
    tokenizer.encode = lambda text, **_: (7,)
    task = TextGeneration(make_manifest(), tokenizer, None, max_model_len=128, random_seed=lambda: 0)
    assert prepare(task, text="a" * 10_000).request.prompt_token_ids == (7,)


def test_end_tokens_beyond_the_vocabulary_are_never_drawn_and_so_ignored():
    task = make_task(tokenizer=TokenizerSpec("tokenizer.json", eos_token_ids=(257, 400)))
    assert prepare(task, text="a").request.params.stop_token_ids == frozenset({257})


def test_an_empty_list_of_ids_is_refused():
    with pytest.raises(InvalidRequest, match=r"^input_ids: .*at least one token"):
        prepare(input_ids=[])


def test_messages_for_a_model_without_template_say_what_to_send_instead():
    with pytest.raises(InvalidRequest, match=r"^messages: .*text_input instead: this model has no chat template"):
        prepare(make_task(template=None), messages=CHAT)


def test_a_template_that_refuses_names_the_messages():
    with pytest.raises(InvalidRequest, match=r"^messages: .*one turn only"):
        prepare(make_task(template="{{ raise_exception('one turn only') }}"), messages=CHAT)


# --- echo, deadline, ending, seed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "exclude", "echo"),
    [(False, None, "hi"), (False, False, "hi"), (False, True, ""), (True, None, ""), (True, True, "")],
)
def test_the_prompt_is_repeated_only_outside_streams_and_unless_excluded(stream, exclude, echo):
    assert prepare(text="hi", stream=stream, exclude=exclude).echo == echo
    assert prepare(input_ids=[BOS, *b"hi"], stream=stream, exclude=exclude).echo == echo
    assert prepare(text="hi", stream=stream, exclude=exclude).stream is stream


def test_a_stream_cannot_repeat_the_prompt():
    with pytest.raises(InvalidRequest, match=r"^exclude_input_in_output: got False, allowed: true when stream is true"):
        prepare(text="hi", stream=True, exclude=False)


@pytest.mark.parametrize("exclude", [None, False, True])
def test_a_chat_is_never_repeated(exclude):
    assert prepare(messages=CHAT, exclude=exclude).echo == ""


def test_the_deadline_counts_from_now_and_the_clients_own_comes_first():
    assert prepare(text="a", now=10.0).request.deadline is None
    assert prepare(text="a", now=10.0, deadline_ms=1500).request.deadline == 11.5
    task = make_task(deadline_ms=250)
    assert prepare(task, text="a", now=10.0).request.deadline == 10.25
    assert prepare(task, text="a", now=10.0, deadline_ms="4000").request.deadline == 14.0


def test_the_models_end_tokens_and_the_clients_own_both_end_the_generation():
    assert prepare(text="a").request.params.stop_token_ids == {EOS}
    assert prepare(text="a", stop_token_ids=[3]).request.params.stop_token_ids == {3, EOS}
    assert prepare(text="a", stop_token_ids=[3], ignore_eos=True).request.params.stop_token_ids == {3}
    assert prepare(text="a", ignore_eos="true").request.params.stop_token_ids == frozenset()
    several = make_task(tokenizer=TokenizerSpec("t", (7, 9)))
    assert prepare(several, text="a").request.params.stop_token_ids == {7, 9}


def test_stop_token_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(InvalidRequest, match=r"^stop_token_ids: got 258, allowed: token ids from 0 to 257"):
        prepare(text="a", stop_token_ids=[1, 258])


def test_a_random_seed_is_drawn_only_for_requests_that_bring_none():
    task = make_task(seeds=(11, 12))
    seeds = [prepare(task, text="a", **given).request.params.seed for given in ({}, {"seed": 0}, {"seed": "99"}, {"seed": None})]
    assert seeds == [11, 0, 99, 12]


def test_every_sampling_parameter_reaches_the_engine():
    given = {"max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
    given |= {"presence_penalty": 0.3, "frequency_penalty": -0.4, "repetition_penalty": 1.2, "seed": 8}
    params = prepare(text="a", return_cumulative_logprob=True, **given).request.params
    assert {name: getattr(params, name) for name in given} == given
    assert params.return_logprobs
    assert not prepare(text="a").request.params.return_logprobs


def test_the_likeliest_tokens_are_computed_only_for_those_who_read_them():
    assert prepare(text="a", logprobs=3, return_logprobs=True).request.params.logprobs == 3
    assert prepare(text="a", logprobs=3).request.params.logprobs is None
    assert prepare(text="a", return_logprobs=True).request.params.logprobs is None
    assert prepare(text="a", prompt_logprobs=0).request.params.prompt_logprobs == 0


@pytest.mark.parametrize(
    ("guide", "first"), [({"json": True}, "{"), ({"regex": "[xy]z"}, "xy"), ({"choice": ["no", "yes"]}, "ny")]
)
def test_a_guide_becomes_the_constraint_of_every_answer(guide, first):
    mask = prepare(text="a", **guide).request.params.constraint.allowed()
    assert [chr(byte) for byte in range(258) if mask[byte // 8] >> byte % 8 & 1] == sorted(first)
    assert prepare(text="a").request.params.constraint is None


def test_a_guide_that_cannot_be_followed_is_refused_by_its_name():
    with pytest.raises(InvalidRequest, match=r"^json: got '{\"type\": \"strin\"}', allowed: .*Invalid type: strin"):
        prepare(text="a", json={"type": "strin"})


def test_a_bad_word_is_forbidden_at_the_start_of_a_text_and_after_a_space():
    assert prepare(text="a", bad_words="hi").request.params.bad_words == (tuple(b"hi"), tuple(b" hi"))
    assert prepare(text="a", bad_words=[" hi", "hi"]).request.params.bad_words == (tuple(b"hi"), tuple(b" hi"))
    assert prepare(text="a").request.params.bad_words == ()


def test_a_bad_word_without_tokens_is_refused_and_one_the_model_cannot_say_is_passed_over():
    with pytest.raises(InvalidRequest, match=r"^bad_words: got '  ', allowed: words that the model's tokenizer has tokens for"):
        prepare(text="a", bad_words=["ok", "  "])
    task = make_task()
    task.tokenizer.encode = lambda text, **_: (5,) if text in ("a", "ok") else (300,)
    assert prepare(task, text="a", bad_words=["ok", "rare"]).request.params.bad_words == ((5,),)


def test_a_truncated_prompt_keeps_its_last_tokens():
    assert prepare(text="hello", truncate_prompt_tokens=3).request.prompt_token_ids == tuple(b"llo")
    assert prepare(input_ids=[1, 2, 3], truncate_prompt_tokens="2").request.prompt_token_ids == (2, 3)
    assert prepare(messages=CHAT, truncate_prompt_tokens=99).request.prompt_token_ids == tuple(b"<hi>")
    assert prepare(text="hello", truncate_prompt_tokens=3).echo == "hello"


def test_the_chat_template_sees_the_tools():
    task = make_task(template="{{ tools[0].name if tools else 'none' }}")
    assert prepare(task, messages=CHAT, tools=[{"name": "f"}]).request.prompt_token_ids == tuple(b"f")
    assert prepare(task, messages=CHAT, tools=[]).request.prompt_token_ids == tuple(b"none")
    with pytest.raises(InvalidRequest, match=r"^tools: got .*allowed: messages beside them"):
        prepare(text="a", tools=[{"name": "f"}])


def test_only_a_request_that_asks_for_its_timing_gets_it():
    prepared = prepare(text="a", now=2.5, return_timing=True)
    assert prepared.request.return_timing and prepared.arrived == 2.5
    assert not prepare(text="a").request.return_timing


def test_the_best_of_several_answers_are_found_by_their_log_probabilities():
    prepared = prepare(text="a", n=2, best_of=5)
    assert (prepared.request.params.n, prepared.num_answers) == (5, 2)
    assert prepared.request.params.return_logprobs
    prepared = prepare(text="a", n=2, stream=True)
    assert (prepared.request.params.n, prepared.num_answers) == (2, 2)
    assert not prepared.request.params.return_logprobs


def test_the_best_of_several_answers_cannot_be_streamed():
    with pytest.raises(InvalidRequest, match=r"^best_of: got 5, allowed: n \(2\) when stream is true"):
        prepare(text="a", n=2, best_of=5, stream=True)


def test_what_shapes_the_text_stays_with_the_answer():
    prepared = prepare(text="a", stop=["x", "y"], include_stop_str_in_output=True, skip_special_tokens=False)
    assert (prepared.stop, prepared.include_stop, prepared.skip_special_tokens) == (("x", "y"), True, False)
    assert prepare(text="a", stop="x").stop == ("x",)


def test_the_models_sampling_defaults_apply_and_are_read_like_a_clients_values():
    task = make_task(generation={"temperature": 0.6, "top_k": 20.0, "max_tokens": 40.0})
    params = prepare(task, text="a").request.params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.6, 20, 40)
    assert {type(params.top_k), type(params.max_tokens)} == {int}
    assert prepare(task, text="a", top_k=3).request.params.top_k == 3


@pytest.mark.parametrize("generation", [{"temperature": -1.0}, {"top_k": 2.5}, {"no_such_thing": 1.0}])
def test_sampling_defaults_that_no_client_could_send_damage_the_manifest(generation):
    with pytest.raises(ManifestError, match=rf"^generation: {next(iter(generation))}: "):
        make_task(generation=generation)


def test_a_manifest_without_tokenizer_cannot_generate_text():
    with pytest.raises(ValueError, match=r"tokenizer"):
        make_task(tokenizer=None)


def test_beams_cannot_be_streamed():
    with pytest.raises(InvalidRequest, match=r"^num_beams: got 2, allowed: 1 when stream is true"):
        prepare(text="a", num_beams=2, stream=True)
    params = prepare(text="a", num_beams=3, n=2, length_penalty=0.5, early_stopping="never").request.params
    assert (params.num_beams, params.n, params.length_penalty, params.early_stopping) == (3, 2, 0.5, "never")
