"""The frames between the stub and the user's process: whatever is sent arrives, and nothing else gets through."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import ErrorCode
from fastserve.functions import wire
from fastserve.functions.wire import Call, Decoder, Drop, Failure, FrameTooLarge, Hello, Result, WireError, encode

IDS = st.integers(0, 2**63)
TEXTS = st.lists(st.text(), max_size=5).map(tuple)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.one_of(
    st.builds(Hello, IDS),
    st.builds(Call, IDS, TEXTS, st.dictionaries(st.text(), VALUES, max_size=4)),
    st.builds(Drop, IDS),
    st.builds(Result, IDS, TEXTS),
    st.builds(Failure, IDS, st.sampled_from(ErrorCode), st.text()),
)


def frame(header, body=b"", *, sizes=None):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!II", *(sizes or (len(head), len(body)))) + head + body


def decode(data):
    return list(Decoder().feed(data))


@given(st.lists(MESSAGES, max_size=6), st.data())
def test_messages_arrive_as_they_were_sent_however_the_bytes_are_cut(messages, data):
    sent = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    decoder, arrived = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        arrived += decoder.feed(sent[start:end])
    assert arrived == messages


@given(st.binary(max_size=200))
def test_bytes_that_nobody_encoded_are_an_error_or_wait_for_more(data):
    try:
        messages = decode(data)
    except WireError:
        return
    assert len(messages) * 8 <= len(data)


@given(MESSAGES, st.data())
def test_a_damaged_frame_never_ends_in_anything_but_an_error_of_the_wire(message, data):
    damaged = bytearray(encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode(bytes(damaged))
    except WireError as error:
        assert "frame" in str(error)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        {},
        {"kind": 1},
        {"kind": "run"},
        {"kind": "hello"},
        {"kind": "hello", "version": "1"},
        {"kind": "hello", "version": True},
        {"kind": "drop", "id": -1},
        {"kind": "drop", "id": 1.5},
        {"kind": "call", "id": 1, "sizes": [], "parameters": []},
        {"kind": "call", "id": 1, "sizes": [1], "parameters": {}},
        {"kind": "call", "id": 1, "sizes": [-1, 1], "parameters": {}},
        {"kind": "call", "id": 1, "sizes": 0, "parameters": {}},
        {"kind": "result", "id": 1, "sizes": [True]},
        {"kind": "failure", "id": 1, "code": "OOPS", "message": ""},
        {"kind": "failure", "id": 1, "code": "INTERNAL", "message": None},
    ],
    ids=lambda header: str(header)[:40],
)
def test_a_header_that_is_none_is_refused(header):
    with pytest.raises(WireError, match="cannot be read"):
        decode(frame(header))


def test_a_text_that_is_cut_inside_a_character_is_refused():
    header = {"kind": "result", "id": 1, "sizes": [1, 1]}
    with pytest.raises(WireError, match="UnicodeDecodeError"):
        decode(frame(header, "ü".encode()))


@pytest.mark.parametrize("sizes", [(wire.MAX_HEADER_BYTES + 1, 0), (10, wire.MAX_BODY_BYTES + 1), (2**32 - 1, 2**32 - 1)])
def test_a_size_out_of_bounds_is_refused_before_its_bytes_are_waited_for(sizes):
    with pytest.raises(WireError, match=r"is this FastServe's socket\?"):
        decode(frame(b"", sizes=sizes))


def test_what_is_too_large_is_not_sent_and_says_which_part(monkeypatch):
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 100)
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 100)
    with pytest.raises(FrameTooLarge, match="102 bytes, at most 100") as caught:
        encode(Result(1, ("x" * 50, "ü" * 26)))
    assert caught.value.part == "body"
    with pytest.raises(FrameTooLarge) as caught:
        encode(Call(1, (), {"name": "x" * 100}))
    assert caught.value.part == "header"


def test_the_messages_before_a_damaged_one_are_not_lost():
    decoder, arrived = Decoder(), []
    with pytest.raises(WireError):
        for message in decoder.feed(encode(Drop(1)) + encode(Drop(2)) + frame(b"?")):
            arrived.append(message)
    assert arrived == [Drop(1), Drop(2)]
