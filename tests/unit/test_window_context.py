"""Which window answers for a token: rows by hand, and the definition tried on random documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.tasks.window_context import widest_context
from fastserve.text.windows import Window, WindowLimits, cut_window

LEAD, TAIL = 2, 1


def document(length: int) -> Window:
    """A text whose tokens are 100, 101, ... between two special tokens and one."""
    ids = (0,) * LEAD + tuple(range(100, 100 + length)) + (1,) * TAIL
    owners = (None,) * LEAD + (0,) * length + (None,) * TAIL
    return Window(ids, (0,) * len(ids), ((0, 0),) * len(ids), owners, owners)


def test_a_document_is_looked_through_as_often_for_many_windows_as_for_two(monkeypatch):
    looked_through = []
    run = Window.run
    monkeypatch.setattr(Window, "run", lambda window, sequence: looked_through.append(len(window)) or run(window, sequence))
    counts = []
    for length in (20, 500):
        looked_through.clear()
        windows = cut_window(document(length), WindowLimits(LEAD + 16 + TAIL, 4))
        counts.append(looked_through.count(LEAD + length + TAIL))
    assert len(windows) > 40 and counts == [1, 1]


def shares(length: int, room: int, stride: int) -> tuple[list[Window], list[list[int]]]:
    """The windows of a document, and the tokens each of them answers for, counted in the text."""
    windows = cut_window(document(length), WindowLimits(LEAD + room + TAIL, stride))
    return windows, [
        [token - 100 for token in window.token_ids[share]] for window, share in zip(windows, widest_context(windows), strict=True)
    ]


@pytest.mark.parametrize(
    ("length", "room", "stride", "expected"),
    [
        (4, 8, 2, [[0, 1, 2, 3]]),
        (0, 8, 2, [[]]),
        (10, 8, 4, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]),  # windows 0-7 and 4-9: both see 2 tokens behind 5 or before 6
        (10, 8, 3, [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]),  # 5-7 are shared; 6 has one token after it and one before
        (10, 5, 0, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
    ],
)
def test_the_best_window_changes_in_the_middle_of_what_two_share(length, room, stride, expected):
    assert shares(length, room, stride)[1] == expected


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 12))
def test_every_token_is_answered_once_by_the_window_with_most_context_on_its_shorter_side(length, room, stride):
    windows, parts = shares(length, room, stride)
    assert [token for part in parts for token in part] == list(range(length))
    seen = [[token_id - 100 for token_id in window.token_ids if token_id >= 100] for window in windows]
    for index, part in enumerate(parts):
        for token in part:
            context = [
                min(
                    length if tokens[0] == 0 else token - tokens[0],
                    length if tokens[-1] == length - 1 else tokens[-1] - token,
                )
                if token in tokens
                else -1
                for tokens in seen
            ]
            assert context.index(max(context)) == index
