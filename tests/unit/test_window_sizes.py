"""How many windows a request may have: a long text beside the one that is cut would make thousands of a page."""

from __future__ import annotations

import pytest

from fastserve.errors import RequestTooLong
from fastserve.text import windows as windows_module
from fastserve.text.windows import WindowLimits
from tests.unit.test_windows import tokenizer_of


@pytest.mark.parametrize(
    ("text", "pairs", "field"),
    [("a b c d", ["e " * 30], "text_pair"), ("a", ["e " * 9] * 4, "text_input"), ("a", ["e"] * 20, "text_input")],
    ids=["a pair", "several pairs", "short pairs"],
)
def test_more_windows_than_a_request_may_have_are_refused_before_they_fill_the_memory(text, pairs, field, monkeypatch):
    def cut(count):
        return tokenizer_of("words").windows_batch([text] * count, pairs[:count], WindowLimits(8, 0))

    monkeypatch.setattr(windows_module, "MOST_TOKENS", 80)
    with pytest.raises(RequestTooLong, match=rf"^{field}: got '\d+ windows with \d+ tokens', allowed: at most 80 tokens"):
        cut(len(pairs))
    monkeypatch.setattr(windows_module, "MOST_TOKENS", 1000)
    assert cut(len(pairs))
