"""What ``fastserve infer`` does with an encoder model: texts in, the results as JSON out."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence

from fastserve.config import GENERATION_TASK
from fastserve.errors import FastServeError, ToolError
from fastserve.tools import console
from fastserve.tools.client import RequestFailed
from fastserve.tools.encoder_client import EncoderClient, EncoderRequest, Outputs, Scalar, result_of, task_of
from fastserve.tools.ordered_requests import in_order
from fastserve.tools.request_arguments import sampling_parameters

QUESTION_ANSWERING = "question-answering"
PAIR_TASKS = ("text-classification", "reranking")
"""Tasks whose second text is the input text_pair."""
_OWN_ARGUMENTS = ("pair", "question", "context", "head", "tail", "candidate_labels")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("encoder models", "classification, entities, questions, embeddings ...; the answer is JSON")
    group.add_argument("--pair", action="append", default=[], metavar="TEXT", help="second text; one for all, or one a PROMPT")
    group.add_argument("--question", action="append", default=[], metavar="TEXT", help="the same as a PROMPT")
    group.add_argument("--context", metavar="TEXT", help="where the answers to the questions are looked for")
    for name in ("head", "tail"):
        group.add_argument(f"--{name}", type=_span, metavar="START:END", help=f"characters of the {name} of a relation")
    group.add_argument("--candidate-labels", metavar="A,B,...", help="classes of zero-shot classification")


def parameter(text: str) -> tuple[str, Scalar]:
    """``NAME=VALUE`` from the command line. Numbers, true and false are what they look like; all else is text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: NAME=VALUE")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, bool | int | float | str) else value


def candidate_labels(text: str | None) -> tuple[str, ...]:
    return tuple(label for part in (text or "").split(",") if (label := part.strip()))


def task_to_infer(client: EncoderClient, model: str) -> str:
    """The model's task. A server that does not tell is asked to generate; its answer to that says what is wrong."""
    try:
        return task_of(client, model)
    except RequestFailed:
        return GENERATION_TASK


def refuse_encoder_arguments(arguments: argparse.Namespace) -> None:
    """Raise :class:`ToolError` when arguments for encoder models are given for one that generates."""
    if given := [name for name in _OWN_ARGUMENTS if getattr(arguments, name)]:
        option = given[0].replace("_", "-")
        raise ToolError(f"--{option} is for encoder models; {arguments.model} generates text")


def encoder_requests(task: str, prompts: Sequence[str], arguments: argparse.Namespace) -> list[EncoderRequest]:
    """A request for each prompt (or, with one prompt, for each pair). Raises :class:`ToolError` for what the task cannot take."""
    defaults = argparse.Namespace(**{**vars(arguments), "max_tokens": None})
    if sampling_parameters(defaults):
        raise ToolError(f"{arguments.model} is a {task} model: it samples nothing; its parameters are --parameter NAME=VALUE")
    spans = {name: span for name in ("head", "tail") if (span := getattr(arguments, name)) is not None}
    labels = candidate_labels(arguments.candidate_labels)
    return [
        EncoderRequest(texts, spans=spans, candidate_labels=labels, parameters=dict(arguments.parameter))
        for texts in _texts(task, prompts, arguments)
    ]


def run_encoder(client: EncoderClient, requests: Sequence[EncoderRequest], arguments: argparse.Namespace) -> int:
    """Ask and print; 0 when every request was answered, else 1."""

    def ask(request: EncoderRequest) -> Outputs:
        return client.infer(arguments.model, request)

    failed = False
    with contextlib.closing(in_order(ask, requests, max(1, arguments.concurrency))) as outcomes:
        for request, outcome in zip(requests, outcomes, strict=True):
            failed |= isinstance(outcome, FastServeError)
            _report(request, outcome, as_json=arguments.json, several=len(requests) > 1)
    return 1 if failed else 0


def _span(text: str) -> tuple[int, int]:
    start, separator, end = text.partition(":")
    if not separator or not start.isdecimal() or not end.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: START:END, counted in characters from 0, end exclusive")
    return int(start), int(end)


def _texts(task: str, prompts: Sequence[str], arguments: argparse.Namespace) -> list[dict[str, str]]:
    pairs = arguments.pair
    if task == QUESTION_ANSWERING:
        if arguments.context is None or pairs:
            raise ToolError(f"{arguments.model} answers questions: give the questions and one --context TEXT, and no --pair")
        return [{"question": prompt, "context": arguments.context} for prompt in prompts]
    if arguments.question or arguments.context is not None:
        raise ToolError(f"--question and --context are for question-answering; {arguments.model} is a {task} model")
    if not pairs:
        return [{"text_input": prompt} for prompt in prompts]
    if task not in PAIR_TASKS:
        raise ToolError(f"--pair is for {' and '.join(PAIR_TASKS)}; {arguments.model} is a {task} model")
    count = max(len(prompts), len(pairs))
    if len(prompts) not in (1, count) or len(pairs) not in (1, count):
        raise ToolError(f"{len(prompts)} prompts and {len(pairs)} --pair: give as many of one as of the other, or only one")
    firsts, seconds = (list(given) * count if len(given) == 1 else given for given in (prompts, pairs))
    return [{"text_input": first, "text_pair": second} for first, second in zip(firsts, seconds, strict=True)]


def _report(request: EncoderRequest, outcome: Outputs | FastServeError, *, as_json: bool, several: bool) -> None:
    try:
        if isinstance(outcome, FastServeError):
            raise outcome
        result = result_of(outcome)
    except FastServeError as error:
        if as_json:
            print(json.dumps({**request.texts, "error": str(error)}, ensure_ascii=False), flush=True)
        else:
            console.complain(f"{next(iter(request.texts.values()))!r}: {error}")
        return
    if as_json:
        print(json.dumps({**request.texts, "result": result}, ensure_ascii=False), flush=True)
        return
    out = console.stdout()
    if several:
        out.print("> " + " | ".join(request.texts.values()), style="bold")
    long_rows = isinstance(result, dict) and "embedding" in result  # a number a line would fill screens
    out.print(json.dumps(result, ensure_ascii=False, indent=None if long_rows else 2))
