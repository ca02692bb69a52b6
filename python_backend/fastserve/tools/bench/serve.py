"""``fastserve bench serve``: load on a model of a running Triton, in an open or a closed loop."""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve.argument_types import at_least
from fastserve.config import GENERATION_TASK
from fastserve.errors import ToolError
from fastserve.tools import console
from fastserve.tools.bench.lengths import Lengths, lengths
from fastserve.tools.encoder_infer import candidate_labels, parameter
from fastserve.tools.request_arguments import add_server_arguments, server_url

if TYPE_CHECKING:
    from fastserve.tools.bench.arrivals import Arrival
    from fastserve.tools.bench.load import Ask
    from fastserve.tools.bench.workload import Workload

_EPILOG = """examples:
  fastserve bench serve my-model --concurrency 16                      closed loop: 16 users, each waits for its answer
  fastserve bench serve my-model --rate 2 --requests 200               open loop: Poisson arrivals, 2 a second on average
  fastserve bench serve my-model --trace arrivals.csv --speed 4 --max-output-tokens 256
  fastserve bench serve my-model --prompts questions.jsonl --json result.json
  fastserve bench serve my-ner --prompts sentences.txt --concurrency 32

A line of a trace: seconds (or a date and time), tokens of the prompt, tokens of the answer; the last two may be missing.
An object of a .jsonl file of prompts: text, input_ids or messages, and max_tokens if you like; of an encoder its inputs.
Without --prompts, prompts are random token ids (of an encoder: random words) of --input-tokens.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", help="name of the model on the server")
    add_server_arguments(parser)
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=at_least(1), metavar="N", help="closed loop of N users (default: 1)")
    loop.add_argument("--rate", type=_positive, metavar="R", help="open loop: R requests a second on average, Poisson")
    loop.add_argument("--trace", type=Path, metavar="FILE", help="open loop: arrivals (and lengths) of a CSV file")
    parser.add_argument("--requests", type=at_least(1), metavar="N", help="how many (default: 100; of a trace, all of it)")
    parser.add_argument("--speed", type=_positive, default=1.0, metavar="X", help="play the trace X times as fast (default: 1)")
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="requests before, not counted (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and settings there")
    work = parser.add_argument_group("what is asked")
    work.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, or .jsonl; used in turn")
    work.add_argument("--input-tokens", type=lengths, default=Lengths(128, 128), metavar="LENGTHS", help="N, A-B or exp:MEAN")
    work.add_argument("--output-tokens", type=lengths, default=Lengths(64, 64), metavar="LENGTHS", help="N, A-B or exp:MEAN")
    work.add_argument("--max-input-tokens", type=at_least(1), metavar="N", help="made-up prompts are cut down to N")
    work.add_argument("--max-output-tokens", type=at_least(1), metavar="N", help="answers are cut down to N")
    work.add_argument(
        "--vocabulary", type=at_least(1), default=256, metavar="N", help="random token ids are below N (default: 256)"
    )
    work.add_argument("--ignore-eos", action=argparse.BooleanOptionalAction, default=True, help="no answer ends early")
    work.add_argument("--parameter", action="append", default=[], type=parameter, metavar="NAME=VALUE", help="of each request")
    work.add_argument("--candidate-labels", metavar="A,B,...", help="classes of zero-shot classification")
    work.add_argument("--seed", type=int, default=0, help="of arrivals, lengths and prompts (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 when a request failed. Raises :class:`ToolError` for arguments that do not fit each other or the model, and when the
    server is not there or does not know the model."""
    from fastserve.tools.bench.display import show, watched
    from fastserve.tools.bench.load import WallClock, closed_loop, open_loop
    from fastserve.tools.bench.samples import summarize
    from fastserve.tools.client import connect
    from fastserve.tools.encoder_client import connect_encoder, task_of

    url, numbers = server_url(arguments), random.Random(arguments.seed)
    due = _arrivals(arguments, numbers)
    with connect(url) as client, connect_encoder(url) as encoder:
        task = task_of(encoder, arguments.model)
        work, clock = _workload(arguments, task), WallClock()
        requests = [work.request(index, arrival, numbers) for index, arrival in enumerate(due)]
        ask = _asker(arguments.model, client if task == GENERATION_TASK else encoder, requests, clock)
        _warm_up(ask, min(arguments.warm_up, len(requests)), clock)
        with watched(len(requests)) as seen:
            if arguments.rate is None and arguments.trace is None:
                samples = closed_loop(ask, len(requests), arguments.concurrency or 1, clock, seen)
            else:
                samples = open_loop(ask, [arrival.at for arrival in due], clock, seen)
    summary = summarize(samples)
    show(summary, samples)
    if arguments.json is not None:
        _write(arguments, {"task": task, "settings": _settings(arguments), **summary.as_json()})
    return 1 if summary.failures else 0


def _arrivals(arguments: argparse.Namespace, numbers: random.Random) -> list[Arrival]:
    """One for each request. In a closed loop only their number counts."""
    from fastserve.tools.bench.arrivals import Arrival, poisson, read_trace

    if arguments.warm_up < 0:
        raise ToolError(f"--warm-up: got {arguments.warm_up}, allowed: a whole number from 0")
    if arguments.trace is not None:
        return read_trace(arguments.trace, arguments.speed)[: arguments.requests]
    if arguments.speed != 1.0:
        raise ToolError("--speed is of a trace: name one with --trace")
    count = arguments.requests or 100
    return [Arrival(0.0)] * count if arguments.rate is None else poisson(arguments.rate, count, numbers)


def _workload(arguments: argparse.Namespace, task: str) -> Workload:
    from fastserve.tools.bench.workload import Workload, read_prompts

    prompts = () if arguments.prompts is None else read_prompts(arguments.prompts, task)
    parameters: dict[str, Any] = dict(arguments.parameter)
    if task == GENERATION_TASK:
        parameters = {"temperature": 0, **({"ignore_eos": True} if arguments.ignore_eos else {}), **parameters}
    elif task == "question-answering" and not any("question" in prompt.fields for prompt in prompts):
        raise ToolError(f"{arguments.model} is for {task}: give it --prompts of a .jsonl file with question and context")
    return Workload(
        arguments.model,
        task,
        prompts,
        arguments.input_tokens,
        arguments.output_tokens,
        arguments.vocabulary,
        arguments.max_input_tokens,
        arguments.max_output_tokens,
        parameters,
        candidate_labels(arguments.candidate_labels),
    )


def _asker(model: str, client: Any, requests: list[Any], clock: Any) -> Ask:
    from fastserve.tools.bench.load import ask_encoder, ask_generator
    from fastserve.tools.client import GenerateRequest

    def ask(number: int, due: float) -> Any:
        request = requests[number]
        if isinstance(request, GenerateRequest):
            return ask_generator(client, request, due, clock)
        return ask_encoder(client, model, request, due, clock)

    return ask


def _warm_up(ask: Ask, count: int, clock: Any) -> None:
    """Raises :class:`ToolError` when the first of them fails: the others would too."""
    for number in range(count):
        sample = ask(number, clock.now())
        if sample.error is not None:
            raise ToolError(f"a request to warm up failed: {sample.error}: {sample.message}")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    left_out = ("command", "benchmark", "run", "run_benchmark", "json")
    plain = (str, int, float, bool, type(None), list)
    return {
        name: value if isinstance(value, plain) else str(value) for name, value in vars(arguments).items() if name not in left_out
    }


def _write(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    try:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ToolError(f"--json {arguments.json}: cannot be written ({error.strerror})") from None
    console.stdout().print(f"written to {arguments.json}")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a number above 0")
    return number
