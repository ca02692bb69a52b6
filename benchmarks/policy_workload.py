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
    """One request: a chat, and parameters of the generation contract."""

    messages: Sequence[Mapping[str, str]]
    parameters: Mapping[str, Any]


def prompts_of(arguments: argparse.Namespace) -> list[Ask]:
    """The first ``--requests`` of the trace, or made up. Answers are greedy and end by themselves, or are cut."""
    texts = _made_up(arguments) if arguments.trace is None else _from_trace(arguments.trace, arguments.requests)
    parameters = {
        "temperature": 0,
        "max_tokens": arguments.output_tokens,
        "truncate_prompt_tokens": arguments.input_tokens,
    }
    return [Ask([{"role": "user", "content": text}], parameters) for text in texts]


def _made_up(arguments: argparse.Namespace) -> list[str]:
    """Questions about random words, whose number is log-normal; short and long answers come of them."""
    chance = random.Random(arguments.seed)
    texts = []
    for _ in range(arguments.requests):
        count = min(max(4, round(chance.lognormvariate(4.0, 0.8))), arguments.input_tokens)
        texts.append(chance.choice(_TASKS).format(" ".join(chance.choice(_WORDS) for _ in range(count))))
    return texts


def _from_trace(file: Path, count: int) -> list[str]:
    """Raises ToolError when there are not so many prompts in it."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [str(request["prompt"]) for line in lines for request in line["requests"] if request["prompt"].strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"--trace {file}: cannot be read as lines of requests with prompts ({error!r})") from None
    if len(texts) < count:
        raise ToolError(f"--trace {file}: holds {len(texts)} prompts, --requests wants {count}")
    return texts[:count]
