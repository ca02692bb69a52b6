"""The four tokens that stand around head and tail in a text for relation extraction."""

from __future__ import annotations

import itertools
from typing import Any

from fastserve.errors import InvalidRequest, UnsupportedModel

_NAMES = (("E1", "E2"), ("SUBJ", "OBJ"), ("SUBJECT", "OBJECT"), ("HEAD", "TAIL"), ("H", "T"), ("S", "O"))
"""What head and tail are called."""
_STYLES = (
    ("[{}]", "[/{}]"),
    ("<{}>", "</{}>"),
    ("[{}]", "[\\{}]"),
    ("[{}_START]", "[{}_END]"),
    ("<{}_START>", "<{}_END>"),
    ("[{}START]", "[{}END]"),
    ("<{}:START>", "<{}:END>"),
)
"""How what is before and after them is written."""


def entity_markers(tokenizer: Any, vocab_size: int, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The tokens before and after the head, before and after the tail. ``wanted``: what the user named; None: found among the
    tokens that were added to the tokenizer. ``vocab_size``: rows of the model's embedding.

    Raises InvalidRequest or UnsupportedModel when one of them is not a single token of the vocabulary, or none are found.
    """
    if wanted is not None:
        if bad := [token for token in wanted if not _is_one_token(tokenizer, token, vocab_size)]:
            raise InvalidRequest("markers", " ".join(bad), "tokens that are each a single token of the model's vocabulary")
        return wanted
    added = set(tokenizer.get_added_vocab())
    spelled = {token.upper(): token for token in added}
    found = [[spelled[token] for token in markers] for markers in _known_markers() if set(markers) <= set(spelled)]
    if len(found) != 1:
        what = "several sets of entity markers" if found else "no entity markers"
        raise UnsupportedModel(
            f"{what} among the tokenizer's added tokens ({', '.join(sorted(added)[:20])}); name the four tokens around head and "
            "tail with --markers, e.g. --markers '[E1]' '[/E1]' '[E2]' '[/E2]'"
        )
    if bad := [token for token in found[0] if not _is_one_token(tokenizer, token, vocab_size)]:
        raise UnsupportedModel(f"the entity markers {' '.join(bad)} are not single tokens of the model's vocabulary")
    return tuple(found[0])


def _known_markers() -> list[tuple[str, ...]]:
    """In upper case."""
    return [tuple(part.format(name) for name in names for part in style) for names, style in itertools.product(_NAMES, _STYLES)]


def _is_one_token(tokenizer: Any, token: str, vocab_size: int) -> bool:
    ids = tokenizer(f"a {token} b", add_special_tokens=False)["input_ids"]
    token_id = tokenizer.get_vocab().get(token)
    return token_id is not None and token_id < vocab_size and list(ids).count(token_id) == 1
