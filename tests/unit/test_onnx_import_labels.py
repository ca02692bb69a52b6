"""Files in which a user names the labels of an imported graph."""

from __future__ import annotations

import json

import pytest

from fastserve.errors import InvalidRequest
from fastserve.export.padded.labels import read_labels

LABELS = ("O", "B-PER", "$APPEND_,")


def write(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "text", ["O\nB-PER\n$APPEND_,\n", "O\nB-PER\n$APPEND_,", "O\r\nB-PER\r\n$APPEND_,\r\n", "\ufeffO\nB-PER\n$APPEND_,"]
)
def test_a_text_file_has_a_label_on_each_line(tmp_path, text):
    assert read_labels(write(tmp_path, "labels.txt", text)) == LABELS


def test_only_the_end_of_a_line_ends_a_label(tmp_path):
    assert read_labels(write(tmp_path, "labels.txt", "$APPEND_\x85\n$APPEND_\u2028\n")) == ("$APPEND_\x85", "$APPEND_\u2028")


@pytest.mark.parametrize(
    "data",
    [
        list(LABELS),
        {"0": "O", "2": "$APPEND_,", "1": "B-PER"},
        {"B-PER": 1, "O": 0, "$APPEND_,": 2},
        {"tags": list(LABELS), "min_count": 10},
    ],
)
def test_a_json_file_lists_or_numbers_the_labels(tmp_path, data):
    assert read_labels(write(tmp_path, "labels.json", json.dumps(data))) == LABELS


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("labels.txt", "", "none of them empty"),
        ("labels.txt", "O\n\nB-PER\n", "none of them empty"),
        ("labels.json", "[1, 2]", "none of them empty"),
        ("labels.json", "{", "a JSON file with a list"),
        pytest.param("labels.json", "[" * 100_000, "a JSON file with a list", id="nested too deeply"),
        ("labels.json", "3", "no list of labels in it"),
        ("labels.json", '{"a": ["x"], "b": ["y"]}', "no list of labels in it"),
        ("labels.json", '{"0": "a", "2": "b"}', "numbers from 0 to 1 without gaps"),
        ("labels.json", '{"a": 1, "b": 1}', "numbers from 0 to 0 without gaps"),
    ],
)
def test_other_files_are_refused_with_what_is_allowed(tmp_path, name, text, complaint):
    with pytest.raises(InvalidRequest, match=f"labels: got .*{complaint}"):
        read_labels(write(tmp_path, name, text))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="No such file"):
        read_labels(tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match="codec can't decode"):
        read_labels(tmp_path / "labels.txt")
