"""The proof of the text side: the saved tokenizer and chat template, read by the runtime's own classes, against the source's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastserve.errors import FastServeError, ManifestError, ProofFailed, UnsupportedModel
from fastserve.manifest import TokenizerSpec
from fastserve.text.templates import ChatTemplate
from fastserve.text.tokenizer import Tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces before, one after \n\n\tand a tab ",
    "naïve café, 東京 и Москва, 👩‍🚀 e\u0301, 1234567890",
    "def f(x):\n    return x ** 2  # it's \"quoted\", isn't it ?\r\n",
    "x",
)
CONVERSATIONS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "  Hello 東京 "},
        {"role": "assistant", "content": "Hi!\n"},
        {"role": "user", "content": "Bye"},
    ],
)


def prove_text(source: Any, spec: TokenizerSpec, directory: Path) -> None:
    """``source``: the transformers tokenizer that ``spec`` was written from, to ``directory``.

    Raises UnsupportedModel when the server could not read what was written, ProofFailed when it would read it differently.
    """
    if getattr(source, "split_special_tokens", False):
        raise UnsupportedModel("the tokenizer splits special tokens that appear in a text (split_special_tokens)")
    try:
        tokenizer = Tokenizer(directory, spec)
        template = None
        if spec.chat_template is not None:
            template = ChatTemplate((directory / spec.chat_template).read_text(encoding="utf-8"), spec.special_tokens)
    except ManifestError as error:
        raise UnsupportedModel(str(error)) from None
    specials = [token for token in spec.special_tokens.values() if token]
    for text in (*TEXTS, *(f"before {token} after{token}\n" for token in specials)):
        _compare_tokens(source, tokenizer, text)
    for messages in CONVERSATIONS if template is not None else ():
        assert template is not None
        _compare_chat(source, tokenizer, template, messages)


def _compare_tokens(source: Any, tokenizer: Tokenizer, text: str) -> None:
    for add_special_tokens in (True, False):
        wanted = list(source(text, add_special_tokens=add_special_tokens)["input_ids"])
        got = list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
        if got != wanted:
            extra = "with" if add_special_tokens else "without"
            raise ProofFailed(
                f"the saved tokenizer does not give its source's tokens: {text!r} {extra} special tokens is {got}, not {wanted}"
            )
    for skip in (True, False):  # the tokens of the last round: all of the text, special tokens in it too
        read = source.decode(wanted, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        if (back := tokenizer.decode(wanted, skip_special_tokens=skip)) != read:
            raise ProofFailed(f"the saved tokenizer does not give its source's text: {wanted} is {back!r}, not {read!r}")


def prove_pairs(source: Any, spec: TokenizerSpec, directory: Path) -> None:
    """Two texts at once must give the source's tokens, offsets and, where it gives them, token types. Raises ProofFailed."""
    pairs = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
    windows = Tokenizer(directory, spec).whole_windows(*map(list, zip(*pairs, strict=True)))
    for (first, second), window in zip(pairs, windows, strict=True):
        wanted = source(first, second, return_offsets_mapping=True)
        got = {"input_ids": window.token_ids, "token_type_ids": window.token_type_ids, "offset_mapping": window.offsets}
        for name, values in got.items():
            if name in wanted and list(values) != list(wanted[name]):
                raise ProofFailed(
                    f"the saved tokenizer does not give its source's {name}: {first!r} with {second!r} is {list(values)}, "
                    f"not {list(wanted[name])}"
                )


def _compare_chat(source: Any, tokenizer: Tokenizer, template: ChatTemplate, messages: list[dict[str, str]]) -> None:
    try:
        wanted = source.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may refuse a conversation, in words of its own
        wanted, refusal = None, error
    try:
        got: str | None = template.render(messages)
    except FastServeError as error:
        got = None
        if wanted is not None:
            raise UnsupportedModel(f"its chat template cannot be rendered by the server: {error}") from None
    if wanted is None and got is not None:
        raise ProofFailed(f"the chat template renders what its source refuses ({refusal})")
    if got is None or wanted is None:
        return
    if got != wanted:
        raise ProofFailed(f"the chat template renders differently: {got!r}, not {wanted!r}")
    ids = list(source(wanted, add_special_tokens=False)["input_ids"])
    if list(tokenizer.encode(got, add_special_tokens=False)) != ids:
        raise ProofFailed(f"the saved tokenizer does not give its source's tokens for a chat: {got!r}")
