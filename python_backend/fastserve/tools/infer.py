"""``fastserve infer``: prompts in, answers out; several prompts run at the same time. Encoder models answer JSON."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import Any

from fastserve.config import GENERATION_TASK
from fastserve.errors import FastServeError, ToolError
from fastserve.tools import console
from fastserve.tools.answer import Answer, generate
from fastserve.tools.client import GenerateRequest, connect
from fastserve.tools.encoder_client import Scalar, connect_encoder
from fastserve.tools.encoder_infer import (
    add_encoder_arguments,
    encoder_requests,
    parameter,
    refuse_encoder_arguments,
    run_encoder,
    task_to_infer,
)
from fastserve.tools.ordered_requests import in_order
from fastserve.tools.request_arguments import add_sampling_arguments, add_server_arguments, sampling_parameters, server_url

_EPILOG = """examples:
  fastserve infer my-model "Once upon a time" --max-tokens 64
  fastserve infer my-model "one" "two" "three" --temperature 0 --json
  fastserve infer my-model "Once upon a time" --parameter n=3 --parameter 'bad_words=["the end"]'
  fastserve infer my-model "Ada is 36:" --parameter 'json={"type": "object", "properties": {"age": {"type": "integer"}}}'
  fastserve infer my-model "Is water wet?" --parameter 'choice=["yes", "no"]'
  fastserve infer my-model --file prompts.txt --protocol http       one prompt a line; - is stdin
  fastserve infer my-ner "Ada Lovelace lived in London" --parameter aggregation_strategy=simple
  fastserve infer my-classifier "a text" --pair "its second text"
  fastserve infer my-qa "Who lived there?" --context "Ada Lovelace lived in London."
  fastserve infer my-zero-shot "I missed my train" --candidate-labels travel,food
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts, each its own request")
    parser.add_argument("--file", metavar="FILE", help="more prompts, one a line; - is stdin")
    add_server_arguments(parser)
    add_sampling_arguments(parser, max_tokens=128)
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        type=parameter,
        metavar="NAME=VALUE",
        help="any other parameter of the model's task, e.g. n=3 or top_k=3; may be given several times",
    )
    add_encoder_arguments(parser)
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="show a single answer as it is made"
    )
    parser.add_argument("--concurrency", type=int, default=32, metavar="N", help="requests at the same time (default: 32)")
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt, in the prompts' order")


def run(arguments: argparse.Namespace) -> int:
    """0 when every prompt was answered; 1 when some failed, each with its own line."""
    prompts = _prompts(arguments)
    url = server_url(arguments)
    with connect_encoder(url) as encoder_client:
        task = task_to_infer(encoder_client, arguments.model)
        if task != GENERATION_TASK:
            return run_encoder(encoder_client, encoder_requests(task, prompts, arguments), arguments)
    refuse_encoder_arguments(arguments)
    return _run_generation(url, prompts, arguments)


def _run_generation(url: str, prompts: list[str], arguments: argparse.Namespace) -> int:
    requests = [_request(arguments, prompt) for prompt in prompts]
    failed = False
    with connect(url) as client:
        if len(requests) == 1 and not arguments.json and requests[0].parameters.get("n", 1) == 1:
            answer = generate(client, requests[0], _show)
            print()
            console.stderr().print(answer.speed(), style="dim")
            return 0
        with contextlib.closing(
            in_order(functools.partial(generate, client), requests, max(1, arguments.concurrency))
        ) as outcomes:
            for prompt, outcome in zip(prompts, outcomes, strict=True):
                failed |= isinstance(outcome, FastServeError)
                _report(prompt, outcome, as_json=arguments.json)
    return 1 if failed else 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = [*arguments.prompts, *arguments.question]
    if arguments.file is not None:
        try:
            text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ToolError(f"{arguments.file}: cannot be read as UTF-8 text ({error})") from None
        prompts += [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ToolError("no prompt given: put it behind the model's name, or name a --file")
    return prompts


def _request(arguments: argparse.Namespace, prompt: str) -> GenerateRequest:
    parameters = sampling_parameters(arguments) | {name: _value(name, value) for name, value in arguments.parameter}
    stream = arguments.stream and parameters.get("num_beams", 1) == 1  # beams have nothing to show before the end
    return GenerateRequest(
        arguments.model,
        text=prompt,
        parameters=parameters,
        stream=stream,
        exclude_input_in_output=None if stream else True,
    )


def _value(name: str, value: Scalar) -> Any:
    """A list or an object from its JSON, all else as it is: also a regular expression, which may look like a list."""
    if name == "regex" or not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _report(prompt: str, outcome: Answer | FastServeError, *, as_json: bool) -> None:
    if as_json:
        result = {"error": str(outcome)} if isinstance(outcome, FastServeError) else outcome.as_json()
        print(json.dumps({"prompt": prompt, **result}, ensure_ascii=False), flush=True)
    elif isinstance(outcome, FastServeError):
        console.complain(f"{prompt!r}: {outcome}")
    else:
        out = console.stdout()
        out.print(f"> {prompt}", style="bold")
        for text in (outcome.text, *outcome.others):
            out.print(text)
        out.print(outcome.speed() + "\n", style="dim")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
