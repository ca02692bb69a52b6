"""What a comparison of policies on the real engine is asked: chats from a trace, or made up."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.errors import ToolError

MARGIN = 16
"""Tokens an answer is drawn beyond those wanted, to look for one that can end it."""
_TASKS = (
    "Say in one word whether this is about the sea: {}",
    "Give a title of three words to this: {}",
    "Summarise in one sentence: {}",
    "Continue this story at length, with every detail: {}",
    "Explain step by step, as to a beginner, what all of this means: {}",
    "List ten questions about this, each with its answer: {}",
)
_WORDS = (
    "time",
    "river",
    "seven",
    "light",
    "paper",
    "green",
    "under",
    "walk",
    "stone",
    "quiet",
    "bread",
    "letter",
    "winter",
    "road",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """One request: a chat, and how many tokens the answer is to have at most."""

    messages: Sequence[Mapping[str, str]]
    output_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """Of an answer: it has ``output_tokens`` tokens, and ends with the first token that is ``token``."""

    input_tokens: int
    output_tokens: int
    token: int


def asks_of(arguments: argparse.Namespace) -> list[Ask]:
    """The first ``--requests`` of the trace, or made up."""
    found = _made_up(arguments) if arguments.trace is None else _from_trace(arguments.trace, arguments.requests)
    limit = arguments.output_tokens
    return [Ask([{"role": "user", "content": text}], min(max(1, length), limit)) for text, length in found]


def ending_near(token_ids: Sequence[int], input_tokens: int, wanted: int) -> Ending:
    """Where an answer of these tokens can be made to end by one of its own, as near to ``wanted`` tokens as there is a token that
    was not in it before."""
    first = {token: place for place, token in reversed(list(enumerate(token_ids, 1)))}
    token, place = min(first.items(), key=lambda item: abs(item[1] - wanted))
    return Ending(input_tokens, place, token)


def parameters(number: int, arguments: argparse.Namespace, ending: Ending | None) -> dict[str, Any]:
    """Of the request of that number. Drawn with a seed of its own, its tokens are the same whatever runs beside it; without an
    ``ending`` it goes on as long as it may."""
    drawn = {"temperature": 1, "seed": number, "ignore_eos": True, "truncate_prompt_tokens": arguments.input_tokens}
    if ending is None:
        return drawn
    return {**drawn, "max_tokens": arguments.output_tokens + MARGIN, "stop_token_ids": [ending.token]}


def _made_up(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Questions about random words. Their number is log-normal, and so is that of tokens in an answer."""
    chance = random.Random(arguments.seed)
    found = []
    for _ in range(arguments.requests):
        count = min(max(4, round(chance.lognormvariate(4.0, 0.8))), arguments.input_tokens)
        text = chance.choice(_TASKS).format(" ".join(chance.choice(_WORDS) for _ in range(count)))
        found.append((text, round(chance.lognormvariate(3.7, 1.2))))
    return found


def _from_trace(file: Path, count: int) -> list[tuple[str, int]]:
    """Raises ToolError when there are not so many prompts in it."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        requests = [request for line in lines for request in line["requests"]]
        found = [(str(request["prompt"]), int(request["Output Length"])) for request in requests if request["prompt"].strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"--trace {file}: cannot be read as lines of requests with prompts ({error!r})") from None
    if len(found) < count:
        raise ToolError(f"--trace {file}: holds {len(found)} prompts, --requests wants {count}")
    return found[:count]
