"""Which tokens may come next, so that an answer follows a grammar (guided decoding), by the ``llguidance`` library.

A grammar becomes a parser over bytes; a mask is computed when a token is drawn, by walking a prefix tree of the vocabulary,
so that nothing is precomputed for each grammar. What is bounded here: the size of a grammar, the work to compile it and the
work for one mask, because both come from clients.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from fastserve.errors import InvalidRequest, UnsupportedFeature, first_line, shorten

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions, LLParserLimits

JSON, REGEX, CHOICE = "json", "regex", "choice"
GUIDES = (JSON, REGEX, CHOICE)
"""The kinds of grammars, by the names of the parameters that give them."""

_WHITESPACE = r"\x20|\n(\x20{0,16}|\t{0,8})"
"""Between the parts of a JSON text: a space, or a new line and what it is indented by. Without bounds a small model fills the
rest of its answer with it."""
_JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITESPACE,
    "lenient": False,
    "coerce_one_of": False,
}
"""Given as overrides, so that a schema cannot choose its own."""
_SAMPLE = '{"a": [1, -2.5e3], "\u00e9\u2603": "b c"}\n yes'
"""Punctuation, spaces and characters of several bytes, whose tokens must mean to the library what they mean to the tokenizer."""


class GuidanceTokenizer(Protocol):
    """What is needed of a model's tokenizer."""

    @property
    def size(self) -> int: ...
    def to_json(self) -> str: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]: ...


class Guidance:
    """Compiles the grammars of one model. Not for the threads that receive requests or compute tokens: a grammar takes up to
    some tenths of a second, usually a millisecond, while other threads run: the library releases the GIL. The first one builds
    the tree of the vocabulary, about 0.2 s for 50,000 tokens, and that stops every thread."""

    def __init__(self, tokenizer: GuidanceTokenizer, eos_token_ids: Collection[int], vocab_size: int) -> None:
        """``vocab_size``: width of a row of logits."""
        self._tokenizer = tokenizer
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocab_size = vocab_size
        self._vocabulary: LLTokenizer | None = None
        self._unusable = ""  # why there can be no vocabulary

    def compile(self, kind: str, source: str | Sequence[str]) -> Grammar:
        """``kind``: of :data:`GUIDES`. ``source``: a JSON schema as text, a regular expression, or the choices.

        Raises InvalidRequest, naming ``kind``, for what is no grammar, one that is too complex or one that nothing follows;
        UnsupportedFeature when the model's tokenizer cannot be used.
        """
        from llguidance import LLMatcher

        if self._vocabulary is None and not self._unusable:
            self._build()
        if self._vocabulary is None:
            raise UnsupportedFeature(kind, self._unusable)
        try:
            matcher = LLMatcher(self._vocabulary, _grammar(kind, source), log_level=0, limits=_limits())
        except ValueError as error:
            raise _refused(kind, source, str(error)) from None
        grammar = Grammar(matcher, kind, source)
        grammar.allowed()  # finds its errors, and spares the engine the dearest mask
        return grammar

    def _build(self) -> None:
        """The tree of the vocabulary, or why there is none."""
        from llguidance import LLTokenizer

        if not self._eos_token_ids:
            self._unusable = "the model has no end-of-sequence token to end an answer with"
            return
        num_ids = max(self._vocab_size, self._tokenizer.size)
        try:
            vocabulary = LLTokenizer(self._tokenizer.to_json(), n_vocab=num_ids, eos_token=self._eos_token_ids)
            token_ids = list(self._tokenizer.encode(_SAMPLE, add_special_tokens=False))
            understood = vocabulary.decode_bytes(token_ids).decode(errors="replace")
        except BaseException as error:  # the library's panics are no Exception
            self._unusable = f"the model's tokenizer cannot be used for it ({first_line(error)})"
            return
        if understood.strip() == _SAMPLE:
            self._vocabulary = vocabulary
        else:
            self._unusable = f"the model's tokenizer cannot be used for it ({_SAMPLE!r} is read as {shorten(understood)!r})"


class Grammar:
    """How far an answer has come in its grammar. Implements ``core.constraint.Constraint``."""

    __slots__ = ("_kind", "_matcher", "_source")

    def __init__(self, matcher: LLMatcher, kind: str, source: str | Sequence[str]) -> None:
        self._matcher = matcher
        self._kind = kind
        self._source = source

    def fork(self) -> Grammar:
        return Grammar(self._matcher.deep_copy(), self._kind, self._source)

    def allowed(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _refused(self._kind, self._source, self._matcher.get_error())
        if not mask.strip(b"\0"):
            raise _refused(self._kind, self._source, "the model has no token that continues it")
        return mask

    def advance(self, token_id: int) -> bool:
        # A token that is refused leaves the matcher in error, which the next mask reports.
        return bool(self._matcher.consume_token(token_id) and self._matcher.is_stopped())


def _limits() -> LLParserLimits:
    """Some 10 ms for what a compilation or a mask does, some 10 MB for what it keeps. A string of bounded length needs states
    for each of its characters: enough of them for some thousands."""
    from llguidance._lib import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=50_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _grammar(kind: str, source: str | Sequence[str]) -> str:
    """The library's form of it. Raises ValueError."""
    from llguidance import LLMatcher, regex_to_lark

    if kind == JSON:
        return LLMatcher.grammar_from_json_schema(str(source), overrides=_JSON_OPTIONS)
    if kind == REGEX:
        return f"start: /{regex_to_lark(str(source), 'dws')}/"  # of ASCII: a date is not to come in digits of other scripts
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in source))


def _refused(kind: str, source: str | Sequence[str], message: str) -> InvalidRequest:
    """``message``: the library's, of which the first line or the one marked as the error says what is wrong."""
    lines = [line.strip() for line in message.splitlines()] or [""]
    said = next((line[len("error: ") :] for line in lines if line.startswith("error: ")), lines[0].split("(in regex): ")[-1])
    what = {JSON: "a JSON schema", REGEX: "a regular expression", CHOICE: "a list of strings"}[kind]
    return InvalidRequest(kind, source, f"{what} that can be followed ({shorten(said, 200)})")
