"""Grammars over a real tokenizer: what may come next, what is refused and why, and that a hostile grammar costs little."""

from __future__ import annotations

import json
import re

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from fastserve.errors import InvalidRequest, UnsupportedFeature
from fastserve.text.guidance import Guidance
from tests.doubles import ByteTokenizer

EOS = 257
GUIDANCE = Guidance(ByteTokenizer(), (EOS,), 258)


def allowed(grammar):
    mask = grammar.allowed()
    return {token_id for token_id in range(258) if mask[token_id // 8] >> token_id % 8 & 1}


def follow(grammar, text):
    """A grammar after ``text``, every byte of which was allowed, and whether it is complete and nothing may follow."""
    own, done = grammar.fork(), False
    for token_id in text.encode():
        assert token_id in allowed(own), f"{chr(token_id)!r} of {text!r}"
        done = own.advance(token_id)
    return own, done


def accepts(grammar, text):
    try:
        own, _ = follow(grammar, text)
    except AssertionError:
        return False
    return EOS in allowed(own)


# --- what may come next -----------------------------------------------------------------------------------------------


def test_the_end_is_allowed_exactly_when_the_grammar_is_complete():
    own = GUIDANCE.compile("regex", "ab?c*")
    assert allowed(own) == set(b"a")
    assert not own.advance(ord("a")) and allowed(own) == {*b"bc", EOS}
    assert not own.advance(ord("b")) and allowed(own) == {*b"c", EOS}


def test_it_says_when_it_is_complete_and_nothing_may_follow():
    own, done = follow(GUIDANCE.compile("regex", "[0-9]{3}"), "12")
    assert not done and own.advance(ord("3"))
    assert allowed(own) == {EOS}


def test_a_fork_stands_at_the_same_place_and_moves_on_its_own():
    first, _ = follow(GUIDANCE.compile("regex", "a(bc|de)"), "a")
    second = first.fork()
    first.advance(ord("b"))
    assert allowed(first) == set(b"c") and allowed(second) == set(b"bd")


def test_asking_what_is_allowed_changes_nothing():
    own = GUIDANCE.compile("json", '{"type": "object"}')
    assert len({own.allowed() for _ in range(3)}) == 1


def test_a_token_that_was_not_allowed_is_the_error_of_the_next_mask():
    own = GUIDANCE.compile("choice", ["yes"])
    assert not own.advance(ord("n"))
    with pytest.raises(InvalidRequest, match=r"^choice: "):
        own.allowed()


def test_special_tokens_are_no_text():
    assert not {256, EOS} & allowed(GUIDANCE.compile("regex", "(?s:.){5}"))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^a+$", ("a", "aaa"), ("", "b", "ab")),
        ("^a|b$", ("a", "b"), ("ab", "c")),
        (r"\d{4}-\d\d", ("2026-11", "0000-00"), ("26-11", "2026-1١")),
        (r"[^\s/]+/\W", ("a/é", "é//"), ("a/b", "a /-")),
        (r"\w+@\w+\.(com|org)", ("ada@lovelace.org",), ("ada@lovelace", "a b@c.com")),
        ("a.c", ("abc", "aéc"), ("a\nc", "ac")),
        ("é|☃+", ("é", "☃☃"), ("e", "é☃")),
        ("(?i)yes", ("YES", "yEs"), ("no",)),
    ],
)
def test_an_expression_matches_the_whole_answer_as_python_would(pattern, good, bad):
    grammar = GUIDANCE.compile("regex", pattern)
    for text in (*good, *bad):
        assert accepts(grammar, text) is bool(re.fullmatch(pattern, text, re.ASCII)) is (text in good), text


CHOICES = [
    '"q"',
    "a\nb",
    "\\d",
    "é☃😀",
    "\x01",
    "/x/",
    "yes",
    "yesterday",
    "'",
    "\u2028",
    "%ignore",
    "{}",
    " lead",
    "trail ",
    "\\",
]


def test_choices_are_taken_literally():
    grammar = GUIDANCE.compile("choice", CHOICES)
    for choice in CHOICES:
        assert accepts(grammar, choice), choice
    for other in ("q", "5", "yester", "yesterdays", "lead", "\\\\", "\\u0001"):
        assert not accepts(grammar, other), other


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_follows_its_schema():
    grammar = GUIDANCE.compile("json", json.dumps(SCHEMA))
    for good in (
        '{"name":"Ada","age":36}',
        '{"name": "Ada", "age": 36}',
        '{\n  "name": "Ad\\"",\n  "age": 0\n}',
        '{"name":"é","age":150}',
    ):
        assert accepts(grammar, good), good
    for bad in (
        '{"age":36}',
        '{"name":"Ada","age":151}',
        '{"name":"Ada Lo","age":1}',
        '{"name":"Ada","age":3.5}',
        "[]",
        ' {"name"',
        "{}",
    ):
        assert not accepts(grammar, bad), bad


def test_any_object_is_an_object():
    grammar = GUIDANCE.compile("json", '{"type": "object"}')
    for text, good in (("{}", True), ('{"a": [1, {"b": null}]}', True), ("[]", False), ("5", False)):
        assert accepts(grammar, text) is good, text


def test_no_answer_is_filled_with_the_space_between_its_parts():
    grammar = GUIDANCE.compile("json", '{"type": "object"}')
    assert all(accepts(grammar, "{" + space + "}") for space in ("", " ", "\n", "\n" + 16 * " ", "\n\t"))
    assert not any(accepts(grammar, "{" + space + "}") for space in ("  ", "\n\n", "\n" + 17 * " ", "\t"))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(a", "a regular expression that can be followed (unclosed group)"),
        ("regex", "(?=a)b", "look-around, including look-ahead and look-behind, is not supported"),
        ("regex", r"\bword", "lookarounds not supported yet"),
        ("regex", "(" * 5000 + "a" + ")" * 5000, "exceed the maximum number of nested parentheses"),
        ("json", '{"type": "strin"}', "a JSON schema that can be followed (Invalid type: strin)"),
        ("json", '{"type": 5}', "type must be a string or array of strings"),
        ("json", '{"not": {"type": "string"}}', 'Unimplemented keys: ["not"]'),
        ("json", '{"$ref": "http://example.com/schema.json"}', "not present in a registry"),
        ("json", '{"$ref": "#"}', "NoExtension"),
        ("json", '{"x-guidance": {"lenient": true}, "not": {}}', "Unimplemented keys"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_key_and_the_reason(kind, source, reason):
    with pytest.raises(InvalidRequest) as caught:
        GUIDANCE.compile(kind, source)
    assert caught.value.field == kind and str(caught.value).startswith(f"{kind}: got ")
    assert reason in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def definitions(make, count):
    names = {f"d{i}": make({"$ref": f"#/$defs/d{i - 1}"}) for i in range(1, count + 1)}
    return json.dumps({"$ref": f"#/$defs/d{count}", "$defs": {"d0": {"type": "integer"}, **names}})


HOSTILE = {
    "many properties": ("json", json.dumps({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(900)}})),
    "a tree of references": ("json", definitions(lambda ref: {"allOf": [{"anyOf": [ref, {}]}, {"anyOf": [ref, {}]}]}, 40)),
    "doubled properties": ("json", definitions(lambda ref: {"type": "object", "properties": {"a": ref, "b": ref}}, 40)),
    "nested repetition": ("regex", "(([a-z]{1,100}){1,100}){1,100}"),
    "states without end": ("regex", "(.*[a-m].{30}|.*[n-z].{30})"),
    "a huge repetition": ("regex", "(ab|a|b){1,100000}c"),
    "a huge string": ("json", '{"type": "string", "maxLength": 1000000000}'),
    "a huge array": ("json", '{"type": "array", "minItems": 1000000000}'),
    "a rare multiple": ("json", '{"type": "integer", "multipleOf": 982451653}'),
    "many choices": ("choice", [f"choice {i}" for i in range(1000)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_followed_within_bounds(name):
    kind, source = HOSTILE[name]
    try:
        own = GUIDANCE.compile(kind, source)
        for _ in range(60):
            own.advance(min(allowed(own)))
    except InvalidRequest as error:
        assert error.field == kind


# --- tokenizers -------------------------------------------------------------------------------------------------------


class FromLibrary:
    """A tokenizer of the library as it is."""

    def __init__(self, made):
        self.made, self.size = made, made.get_vocab_size(with_added_tokens=True)

    def encode(self, text, *, add_special_tokens=True):
        return self.made.encode(text, add_special_tokens=add_special_tokens).ids

    def to_json(self):
        return self.made.to_str()


def metaspace(decoder):
    """Bytes and a few letters, with a visible mark for a space."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), "</s>", *"▁abc"]
    made = tokenizers.Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoder
    made.add_special_tokens(["</s>"])
    return FromLibrary(made)


def test_a_tokenizer_of_marked_spaces_and_bytes_is_understood():
    sequence = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    guidance = Guidance(metaspace(sequence), (256,), 261)
    mask = guidance.compile("regex", "[ a]b").allowed()
    assert [token for token in range(256, 261) if mask[token // 8] >> token % 8 & 1] == [257, 258]


def test_a_tokenizer_that_the_library_would_misread_is_refused():
    guidance = Guidance(metaspace(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])), (256,), 261)
    for kind in ("regex", "choice"):  # found once, said every time
        with pytest.raises(UnsupportedFeature, match=rf"^{kind}: the model's tokenizer cannot be used for it \(.* is read as '▁"):
            guidance.compile(kind, "a")


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused():
    words = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(
        UnsupportedFeature, match=r"^json: the model's tokenizer cannot be used for it \(can't determine decoder type"
    ):
        Guidance(FromLibrary(words), (1,), 2).compile("json", "{}")


def test_a_model_without_an_end_of_sequence_cannot_be_guided():
    with pytest.raises(UnsupportedFeature, match=r"^regex: the model has no end-of-sequence token"):
        Guidance(ByteTokenizer(), (), 258).compile("regex", "a")


@pytest.mark.parametrize("vocab_size", [100, 258, 300])
def test_a_vocabulary_of_another_size_than_the_tokenizers_is_no_trouble(vocab_size):
    assert accepts(Guidance(ByteTokenizer(), (EOS,), vocab_size).compile("regex", "a+"), "aa")


def test_a_long_string_of_bounded_length_is_followed_to_its_end():
    grammar = GUIDANCE.compile("json", '{"type": "object", "properties": {"summary": {"type": "string", "maxLength": 2000}}}')
    assert accepts(grammar, json.dumps({"summary": "It was the best of times. " * 70}))
