"""Reads questions in SQuAD's JSON, versions 1 and 2, also in the flat form the ``datasets`` library writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastserve.errors import ToolError
from fastserve.tools.evaluation.data_file import quoted

Kind = TypeVar("Kind")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """``answers``: the texts of all right answers, none when the context does not say. ``place``: for messages."""

    place: str
    question_id: str
    question: str
    context: str
    answers: tuple[str, ...]


def squad_questions(path: Path, value: Any) -> list[Question]:
    """The questions of a parsed file. Raises :class:`ToolError` naming the element that is missing or of the wrong type."""
    questions = [
        question
        for index, element in enumerate(_get(path, value, "data", list, ""))
        for question in _element_questions(path, element, f"data[{index}]")
    ]
    if not questions:
        raise ToolError(f"{path}: no questions in it")
    return questions


def flat_question(path: Path, element: Any, where: str) -> Question:
    """One object with question, context and answers ({"text": [...]}, a list of {"text": ...}, or a list of texts).

    Raises as :func:`squad_questions`.
    """
    return _question(path, element, _get(path, element, "context", str, where), where)


def _element_questions(path: Path, element: Any, where: str) -> Iterator[Question]:
    if isinstance(element, dict) and "paragraphs" not in element:
        yield flat_question(path, element, where)
        return
    for index, paragraph in enumerate(_get(path, element, "paragraphs", list, where)):
        inner = f"{where}.paragraphs[{index}]"
        context = _get(path, paragraph, "context", str, inner)
        for number, asked in enumerate(_get(path, paragraph, "qas", list, inner)):
            yield _question(path, asked, context, f"{inner}.qas[{number}]")


def _question(path: Path, element: Any, context: str, where: str) -> Question:
    text = _get(path, element, "question", str, where)
    answers = () if element.get("is_impossible") is True else _answers(path, element.get("answers", []), f"{where}.answers")
    return Question(f"{path}: {where}", str(element.get("id", where)), text, context, answers)


def _answers(path: Path, value: Any, where: str) -> tuple[str, ...]:
    given: Sequence[Any] = _get(path, value, "text", list, where) if isinstance(value, Mapping) else value
    if not isinstance(given, list):
        raise ToolError(f"{path}: {where}: got {quoted(given)}, allowed: a list of answers")
    return tuple(_answer(path, answer, f"{where}[{index}]") for index, answer in enumerate(given))


def _answer(path: Path, value: Any, where: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ToolError(f"{path}: {where}: got {quoted(text)}, allowed: text")
    return text


def _get(path: Path, value: Any, key: str, kind: type[Kind], where: str) -> Kind:
    inner = f"{where}.{key}".lstrip(".")
    if not isinstance(value, dict) or key not in value:
        raise ToolError(f"{path}: {inner}: missing; is it SQuAD's JSON?")
    if not isinstance(value[key], kind):
        raise ToolError(f"{path}: {inner}: got {quoted(value[key])}, allowed: {'a list' if kind is list else 'text'}")
    found: Kind = value[key]
    return found
