"""From a file to an evaluation: which format it has, which columns hold what, for each task."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.config import GENERATION_TASK
from fastserve.errors import ToolError
from fastserve.tools.encoder_client import EncoderRequest, Scalar
from fastserve.tools.evaluation.conll import FIRST_AND_LAST, read_conll
from fastserve.tools.evaluation.correlation import finite_number
from fastserve.tools.evaluation.data_file import BadDataset, place, quoted, read_text
from fastserve.tools.evaluation.evaluation_task import EvaluationTask
from fastserve.tools.evaluation.question_answering import QuestionAnswering
from fastserve.tools.evaluation.sentence_pairs import SentencePair, SentencePairs
from fastserve.tools.evaluation.squad import flat_question, squad_questions
from fastserve.tools.evaluation.table import Row, column, parse_json, read_table, text_in
from fastserve.tools.evaluation.text_classification import LabelledText, TextClassification
from fastserve.tools.evaluation.token_classification import TaggedSentence, TokenClassification

_TABLES = ("tsv", "csv", "jsonl", "json")
_TASK_FORMATS = {
    "token-classification": ("conll", "jsonl", "json"),
    "text-classification": _TABLES,
    "zero-shot-classification": _TABLES,
    "relation-extraction": ("jsonl", "json"),
    "question-answering": ("squad", "jsonl", "json"),
    "feature-extraction": _TABLES,
}
FORMATS = ("conll", *_TABLES, "squad")
EVALUATED_TASKS = tuple(_TASK_FORMATS)
_SUFFIXES = {
    **{f".{name}": name for name in ("conll", "tsv", "csv", "jsonl")},
    **dict.fromkeys((".bio", ".iob", ".iob2", ".conll2003"), "conll"),
    ".ndjson": "jsonl",
}
_TEXT = ("text", "sentence", "sentence1", "premise", "question1", "question", "query", "review", "content", "comment")
_PAIR = ("text_pair", "sentence2", "hypothesis", "question2", "document")
_LABEL = ("label", "class", "category", "relation", "target", "score")
_WORDS, _TAGS = ("tokens", "words"), ("tags", "ner_tags", "ner", "labels")
_SIMILARITY = ("score", "similarity", "similarity_score", "label")


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetOptions:
    """What the user says of the dataset; None: found out, or the usual names."""

    form: str | None = None
    columns: tuple[int, int] = FIRST_AND_LAST
    """CoNLL: of the word and of the tag, from 1, or from the end with -1."""
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    header: bool = True
    labels: tuple[str, ...] = ()
    """Names of the labels a dataset numbers."""
    candidate_labels: tuple[str, ...] = ()
    limit: int | None = None
    parameters: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    """Sent with every request."""


def check_task(task: str) -> None:
    """Raise :class:`ToolError` for a task that cannot be evaluated."""
    if task == GENERATION_TASK:
        raise ToolError(
            "the perplexity of a language model is not asked of a server yet: "
            "use --in-process, which runs the model of --model-repository without a server"
        )
    if task not in EVALUATED_TASKS:
        raise ToolError(f"a {task} model cannot be evaluated yet, only: {', '.join(EVALUATED_TASKS)}")


def load_dataset(path: Path, task: str, options: DatasetOptions) -> EvaluationTask[Any]:
    """The evaluation of ``task`` on the file. Raises :class:`ToolError`, with the line where a line is wrong."""
    check_task(task)
    form = options.form or _form_of(path, task)
    if form not in _TASK_FORMATS[task]:
        raise ToolError(f"{path}: {form} is no format of {task} datasets, allowed: {', '.join(_TASK_FORMATS[task])} (--format)")
    return _LOADERS[task](path, form, options)


def _form_of(path: Path, task: str) -> str:
    """By the file's name, else by how it begins."""
    if (form := _SUFFIXES.get(path.suffix.lower())) is not None:
        return form
    text = read_text(path)
    if path.suffix.lower() == ".json":
        begin = text.lstrip()
        if begin.startswith("["):
            return "json"
        return "squad" if task == "question-answering" else "jsonl"
    if task == "token-classification":
        return "conll"
    first_line = text.lstrip("\n").partition("\n")[0]
    if first_line.startswith("{"):
        return "jsonl"
    if "\t" in first_line:
        return "tsv"
    raise ToolError(f"{path}: which format is it? Say so with --format {'|'.join(_TASK_FORMATS[task])}")


def _rows(path: Path, form: str, options: DatasetOptions) -> list[Row]:
    return read_table(path, form, header=options.header)[: options.limit]


def _token_classification(path: Path, form: str, options: DatasetOptions) -> EvaluationTask[Any]:
    if form == "conll":
        found = read_conll(path, options.columns)[: options.limit]
        sentences = [TaggedSentence(place(path, each.line), each.words, each.tags) for each in found]
        return TokenClassification(sentences, options.parameters)
    rows = _rows(path, form, options)
    words = column(path, rows[0], options.text_column, _WORDS, "--text-column")
    tags = column(path, rows[0], options.label_column, _TAGS, "--label-column")
    return TokenClassification([_tagged_row(path, row, words, tags, options.labels) for row in rows], options.parameters)


def _tagged_row(path: Path, row: Row, words: str, tags: str, names: Sequence[str]) -> TaggedSentence:
    given, said = row.fields.get(words), row.fields.get(tags)
    if not isinstance(given, list) or not given or not all(isinstance(word, str) and word for word in given):
        raise BadDataset(path, row.line, f"{words}: got {quoted(given)}, allowed: a list of words")
    if isinstance(said, list) and names:
        said = [names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag for tag in said]
    if not isinstance(said, list) or not all(isinstance(tag, str) for tag in said):
        raise BadDataset(path, row.line, f"{tags}: got {quoted(said)}, allowed: a list of tags (numbers: with --labels)")
    if len(said) != len(given):
        raise BadDataset(path, row.line, f"{len(given)} {words}, but {len(said)} {tags}")
    return TaggedSentence(place(path, row.line), given, said)


def _text_classification(path: Path, form: str, options: DatasetOptions) -> EvaluationTask[Any]:
    rows = _rows(path, form, options)
    text = column(path, rows[0], options.text_column, _TEXT, "--text-column")
    label = column(path, rows[0], options.label_column, _LABEL, "--label-column")
    pair = _pair_column(path, rows[0], options)
    columns = {"text_input": text} | ({"text_pair": pair} if pair else {})
    return TextClassification(
        [
            LabelledText(
                place(path, row.line),
                EncoderRequest({name: text_in(path, row, each) for name, each in columns.items()}, parameters=options.parameters),
                text_in(path, row, label),
            )
            for row in rows
        ],
        options.labels,
    )


def _pair_column(path: Path, row: Row, options: DatasetOptions) -> str | None:
    if options.pair_column is not None:
        return column(path, row, options.pair_column, _PAIR, "--pair-column")
    return next((name for name in _PAIR if name in row.fields), None)


def _zero_shot(path: Path, form: str, options: DatasetOptions) -> EvaluationTask[Any]:
    rows = read_table(path, form, header=options.header)
    text = column(path, rows[0], options.text_column, _TEXT, "--text-column")
    label = column(path, rows[0], options.label_column, _LABEL, "--label-column")
    right = [text_in(path, row, label) for row in rows]
    candidates = options.candidate_labels or options.labels or tuple(dict.fromkeys(right))  # of all rows, whatever the limit
    texts = [
        LabelledText(
            place(path, row.line),
            EncoderRequest({"text_input": text_in(path, row, text)}, candidate_labels=candidates, parameters=options.parameters),
            correct,
        )
        for row, correct in itertools.islice(zip(rows, right, strict=True), options.limit)
    ]
    return TextClassification(texts, options.labels)


def _relation_extraction(path: Path, form: str, options: DatasetOptions) -> EvaluationTask[Any]:
    rows = _rows(path, form, options)
    text = column(path, rows[0], options.text_column, _TEXT, "--text-column")
    label = column(path, rows[0], options.label_column, _LABEL, "--label-column")
    texts = []
    for row in rows:
        content = text_in(path, row, text)
        spans = {name: _span(path, row, name, content) for name in ("head", "tail") if row.fields.get(name) is not None}
        if len(spans) == 1:
            raise BadDataset(path, row.line, "head and tail belong together; without both, the text must have its markers")
        request = EncoderRequest({"text_input": content}, spans=spans, parameters=options.parameters)
        texts.append(LabelledText(place(path, row.line), request, text_in(path, row, label)))
    return TextClassification(texts, options.labels)


def _span(path: Path, row: Row, name: str, text: str) -> tuple[int, int]:
    """``[start, end]`` or ``{"start": ..., "end": ...}``."""
    value = row.fields[name]
    ends = [value.get("start"), value.get("end")] if isinstance(value, dict) else value
    if isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends):
        start, end = ends
        if 0 <= start < end <= len(text):
            return start, end
    allowed = f"[start, end], characters of the text ({len(text)}), end exclusive"
    raise BadDataset(path, row.line, f"{name}: got {quoted(value)}, allowed: {allowed}")


def _question_answering(path: Path, form: str, options: DatasetOptions) -> EvaluationTask[Any]:
    if form == "squad":
        questions = squad_questions(path, parse_json(path, read_text(path)))
    else:
        questions = [flat_question(path, row.fields, f"line {row.line}") for row in _rows(path, form, options)]
    return QuestionAnswering(questions[: options.limit], options.parameters)


def _sentence_pairs(path: Path, form: str, options: DatasetOptions) -> EvaluationTask[Any]:
    rows = _rows(path, form, options)
    first = column(path, rows[0], options.text_column, _TEXT, "--text-column")
    second = column(path, rows[0], options.pair_column, _PAIR, "--pair-column")
    score = column(path, rows[0], options.label_column, _SIMILARITY, "--label-column")
    pairs = []
    for row in rows:
        try:
            similarity = finite_number(text_in(path, row, score))
        except ValueError:
            raise BadDataset(path, row.line, f"{score}: got {quoted(row.fields[score])}, allowed: a number") from None
        texts = text_in(path, row, first), text_in(path, row, second)
        pairs.append(SentencePair(place(path, row.line), *texts, similarity))
    return SentencePairs(pairs, options.parameters)


_LOADERS: Mapping[str, Callable[[Path, str, DatasetOptions], EvaluationTask[Any]]] = {
    "token-classification": _token_classification,
    "text-classification": _text_classification,
    "zero-shot-classification": _zero_shot,
    "relation-extraction": _relation_extraction,
    "question-answering": _question_answering,
    "feature-extraction": _sentence_pairs,
}
