"""From a file to requests: formats, columns, and what is wrong where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastserve.errors import ToolError
from fastserve.tools.evaluation.datasets import DatasetOptions, check_task, load_dataset
from fastserve.tools.evaluation.evaluation_task import EvaluationTask
from fastserve.tools.evaluation.table import read_table

Load = Callable[..., EvaluationTask[Any]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(name: str, text: str, task: str = "text-classification", **options: Any) -> EvaluationTask[Any]:
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return load_dataset(tmp_path / name, task, DatasetOptions(**options))

    return load


def texts(task: EvaluationTask[Any]) -> list[Any]:
    return [dict(request.texts) for requests in task.requests for request in requests]


def lines(task: EvaluationTask[Any]) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in task.places]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_csv_has_quoted_fields_over_several_lines_and_remembers_where_they_begin(load: Load) -> None:
    task = load("d.csv", 'label,sentence1,sentence2\r\na,"one,\n""two""",x\r\n\r\nb,three,y\r\n')
    assert texts(task) == [
        {"text_input": 'one,\n"two"', "text_pair": "x"},
        {"text_input": "three", "text_pair": "y"},
    ]
    assert lines(task) == [2, 5]


def test_a_quote_in_a_tsv_is_a_character_like_any_other(load: Load) -> None:
    assert texts(load("d.tsv", 'sentence\tlabel\n"so\t1\nsaid "he"\t0\n')) == [
        {"text_input": '"so'},
        {"text_input": 'said "he"'},
    ]


def test_columns_without_a_header_have_numbers(load: Load) -> None:
    task = load("d.tsv", "gj04\t1\tA text\n", text_column="3", label_column="2", header=False)
    assert texts(task) == [{"text_input": "A text"}] and lines(task) == [1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("d.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n'), ("d.ndjson", '{"text":"a","label":1}')],
)
def test_json_lines_may_have_numbers_as_labels(load: Load, name: str, text: str) -> None:
    assert texts(load(name, text))[0] == {"text_input": "a"}


def test_a_json_file_is_a_list_or_lines(load: Load) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert texts(load("d.json", json.dumps(rows, indent=1))) == texts(load("e.json", "\n".join(map(json.dumps, rows))))


def test_a_file_without_a_telling_name_is_known_by_its_first_line(load: Load) -> None:
    assert texts(load("d.txt", "text\tlabel\na\tb\n")) == texts(load("e", '{"text": "a", "label": "b"}\n'))
    with pytest.raises(ToolError, match=r"which format is it\? Say so with --format tsv\|csv"):
        load("f", "text,label\na,b\n")
    assert texts(load("f", "text,label\na,b\n", form="csv")) == [{"text_input": "a"}]


def test_only_the_first_items_are_taken_when_a_limit_is_given(load: Load) -> None:
    assert len(load("d.tsv", "text\tlabel\na\t1\nb\t2\nc\t3\n", limit=2).places) == 2
    assert len(load("d.conll", "a O\n\nb O\n\nc O\n", "token-classification", limit=1).places) == 1


def test_given_columns_are_taken_and_parameters_go_with_every_request(load: Load) -> None:
    task = load(
        "d.tsv", "a\tb\tc\td\n1\t2\t3\t4\n", text_column="b", pair_column="d", label_column="a", parameters={"truncation": True}
    )
    assert texts(task) == [{"text_input": "2", "text_pair": "4"}]
    assert task.requests[0][0].parameters == {"truncation": True}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.tsv", "text\tlabel\na\t1\nb\n", r"d.tsv:3: 1 fields, 2 columns: \['b'\]"),
        ("d.csv", 'text,label\na,1\n"b,2\n', r"d.csv:3: not CSV \(unexpected end of data\)"),
        ("d.csv", "text,text\na,1\n", r"d.csv:1: two columns have the same name: text, text"),
        ("d.csv", "text,label\n", "d.csv: no rows in it"),
        ("d.tsv", "body\tlabel\na\t1\n", r"d.tsv:2: none of the columns text, .*; name one with --text-column: body, label"),
        ("d.tsv", "text\tstars\na\t1\n", r"name one with --label-column: text, stars"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": \n', r"d.jsonl:2: not JSON \(Expecting value"),
        ("d.jsonl", '{"text": "a", "label": 1}\n[]\n', r"d.jsonl:2: got \[\], allowed: a JSON object a line"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"d.jsonl:2: label: got None, allowed: text"),
        ("d.jsonl", '{"text": "a", "label": ["x", "y"]}\n', r"d.jsonl:1: label: got \['x', 'y'\], allowed: text"),
        ("d.json", '[\n {"text": "a",\n "label": }]', r"d.json:3: not JSON"),
        ("d.json", "[1]", "allowed: a JSON list of objects"),
        ("d.conll", "a O\n", "conll is no format of text-classification datasets, allowed: tsv, csv, jsonl, json"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_its_line(load: Load, name: str, text: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        load(name, text)


def test_a_column_that_was_named_but_is_not_there_is_an_error(load: Load) -> None:
    with pytest.raises(ToolError, match="no column body; name one with --text-column: text, label"):
        load("d.tsv", "text\tlabel\na\t1\n", text_column="body")


def test_a_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read_table(tmp_path / "d.csv", "csv")[0].fields["text"]) == 200_000


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_words_and_tags_may_come_as_lists_and_tags_as_numbers(load: Load) -> None:
    text = '{"words": ["Ada", "wrote"], "ner": ["B-PER", "O"]}\n'
    assert texts(load("d.jsonl", text, "token-classification")) == [{"text_input": "Ada wrote"}]
    numbered = '{"tokens": ["Ada"], "ner_tags": [1]}\n'
    assert load("d.jsonl", numbered, "token-classification", labels=("O", "B-PER")).places[0].endswith(":1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tokens": ["a"], "tags": ["O", "O"]}', ":1: 1 tokens, but 2 tags"),
        ('{"tokens": "a b", "tags": ["O"]}', ":1: tokens: got 'a b', allowed: a list of words"),
        ('{"tokens": ["a"], "tags": [3]}', r":1: tags: got \[3\], allowed: a list of tags \(numbers: with --labels\)"),
    ],
)
def test_lists_that_are_no_words_with_tags_are_refused(load: Load, text: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        load("d.jsonl", text + "\n", "token-classification")


def test_relations_have_spans_or_markers_in_the_text(load: Load) -> None:
    rows = [
        {"text": "Ada met Bob", "head": [0, 3], "tail": {"start": 8, "end": 11}, "label": "met"},
        {"text": "[E1]Ada[/E1] met [E2]Bob[/E2]", "label": "met"},
    ]
    first, second = load("d.jsonl", "\n".join(map(json.dumps, rows)), "relation-extraction").requests
    assert first[0].spans == {"head": (0, 3), "tail": (8, 11)}
    assert (second[0].spans, second[0].texts["text_input"]) == ({}, "[E1]Ada[/E1] met [E2]Bob[/E2]")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": [0, 3]}, "head and tail belong together"),
        ({"head": [0, 12], "tail": [8, 11]}, r":1: head: got \[0, 12\], allowed: \[start, end\], characters of the text \(11\)"),
        ({"head": [3, 3], "tail": [8, 11]}, "head: got"),
        ({"head": "Ada", "tail": [8, 11]}, "head: got 'Ada'"),
        ({"head": [True, 3], "tail": [8, 11]}, "head: got"),
    ],
)
def test_spans_that_are_none_are_refused(load: Load, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        load("d.jsonl", json.dumps({"text": "Ada met Bob", "label": "met", **fields}), "relation-extraction")


def test_zero_shot_candidates_are_given_or_the_datasets_own_labels(load: Load) -> None:
    text = "text\tlabel\na\ttravel\nb\tfood\nc\ttravel\n"
    own = load("d.tsv", text, "zero-shot-classification").requests[0][0].candidate_labels
    given = load("d.tsv", text, "zero-shot-classification", candidate_labels=("x", "y")).requests[0][0].candidate_labels
    assert (own, given) == (("travel", "food"), ("x", "y"))
    (limited,) = load("d.tsv", text, "zero-shot-classification", limit=1).requests
    assert limited[0].candidate_labels == ("travel", "food")  # alone, the right label would always be the best one


def test_questions_are_read_from_squad_and_from_lines(load: Load) -> None:
    question = {"id": "1", "question": "Who?", "context": "Ada.", "answers": {"text": ["Ada"], "answer_start": [0]}}
    squad = load("dev.json", json.dumps({"version": "1.1", "data": [question]}), "question-answering")
    as_lines = load("dev.jsonl", json.dumps(question), "question-answering")
    assert texts(squad) == texts(as_lines) == [{"question": "Who?", "context": "Ada."}]
    with pytest.raises(ToolError, match=r"dev.json:2: not JSON"):
        load("dev.json", '{"data":\n ?}', "question-answering")


def test_pairs_of_sentences_have_a_number(load: Load) -> None:
    text = "index\tscore\tsentence1\tsentence2\n0\t4.5\ta\tb\n"
    task = load("d.tsv", text, "feature-extraction")
    assert texts(task) == [{"text_input": "a"}, {"text_input": "b"}] and len(task.requests) == 1
    for number in ("high", "nan", "inf"):
        with pytest.raises(ToolError, match=rf"d.tsv:2: score: got '{number}', allowed: a number"):
            load("d.tsv", text.replace("4.5", number), "feature-extraction")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("text-generation", r"perplexity .*: use --in-process"),
        ("fill-mask", "a fill-mask model cannot be evaluated yet, only: token-classification, text-classification"),
    ],
)
def test_tasks_that_cannot_be_evaluated_say_why(task: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        check_task(task)
