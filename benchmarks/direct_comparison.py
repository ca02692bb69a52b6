"""Served answers against the transformers pipeline for the tasks that ``fastserve evaluate`` has no measure for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from report import SEED

from fastserve.tools.encoder_client import EncoderRequest, Outputs, connect_encoder
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.tools.ordered_requests import in_order

SCORE_TOLERANCE = 1e-4
Answer = list[tuple[str, float]]
"""What is answered, the best first, with its scores."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One item, as both are asked. ``asked``: what the pipeline takes."""

    request: EncoderRequest
    asked: Any


def fill_mask_questions(sentences: Sequence[str], mask: str) -> list[Question]:
    """Each sentence with one of its words masked."""
    choice, questions = random.Random(SEED), []
    for sentence in sentences:
        words = sentence.split()
        words[choice.randrange(len(words))] = mask
        text = " ".join(words)
        questions.append(Question(EncoderRequest({"text_input": text}), text))
    return questions


def reranking_questions(sentences: Sequence[str]) -> list[Question]:
    """Each sentence as the query, another as the document."""
    documents = random.Random(SEED).sample(list(sentences), len(sentences))
    return [
        Question(EncoderRequest({"text_input": query, "text_pair": document}), {"text": query, "text_pair": document})
        for query, document in zip(sentences, documents, strict=True)
    ]


def compare_fill_mask(source: Path, repository: Path, model: str, sentences: Sequence[str], concurrency: int) -> dict[str, Any]:
    from transformers import pipeline

    ask = pipeline("fill-mask", model=str(source))
    questions = fill_mask_questions(sentences, ask.tokenizer.mask_token)
    expected = [[(row["token_str"], row["score"]) for row in ask(question.asked)] for question in questions]
    return _compare(expected, _served(repository, model, questions, concurrency, _proposals))


def _proposals(outputs: Outputs) -> Answer:
    return list(zip(outputs["token_str"], outputs["score"], strict=True))


def compare_reranking(source: Path, repository: Path, model: str, sentences: Sequence[str], concurrency: int) -> dict[str, Any]:
    from transformers import pipeline

    ask, questions = pipeline("text-classification", model=str(source)), reranking_questions(sentences)
    expected = [[("", ask(question.asked)["score"])] for question in questions]
    return _compare(expected, _served(repository, model, questions, concurrency, lambda outputs: [("", outputs["score"][0])]))


def _served(
    repository: Path, model: str, questions: Sequence[Question], concurrency: int, read: Callable[[Outputs], Answer]
) -> list[Answer]:
    """Every answer, of a Triton that runs for this only. Raises what a request failed with."""
    options = LaunchOptions(model_control_mode="explicit", load_models=(model,))
    with TritonLauncher(repository, options) as triton, connect_encoder(triton.grpc_url) as client:
        requests = [question.request for question in questions]
        answers = []
        for outcome in in_order(lambda request: client.infer(model, request), requests, concurrency):
            if isinstance(outcome, Exception):
                raise outcome
            answers.append(read(outcome))
        return answers


def _compare(expected: Sequence[Answer], served: Sequence[Answer]) -> dict[str, Any]:
    """As ``fastserve evaluate --json`` writes it under "comparison"."""
    worst, differing, differing_answers = 0.0, 0, 0
    for wanted, got in zip(expected, served, strict=True):
        other = [text for text, _ in wanted] != [text for text, _ in got]
        score = max(abs(one - two) for (_, one), (_, two) in zip(wanted, got, strict=False))
        worst = max(worst, score)
        differing_answers += other
        differing += other or not score <= SCORE_TOLERANCE
    return {
        "compared": len(expected),
        "differing": differing,
        "differing_answers": differing_answers,
        "worst_score_difference": worst,
        "within_tolerance": differing == 0 and bool(expected),
    }
