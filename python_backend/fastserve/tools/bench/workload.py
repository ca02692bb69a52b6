"""What is asked: prompts from a file, or made up with given lengths."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.config import GENERATION_TASK
from fastserve.errors import ToolError
from fastserve.tools.bench.arrivals import Arrival
from fastserve.tools.bench.lengths import Lengths
from fastserve.tools.client import GenerateRequest
from fastserve.tools.encoder_client import EncoderRequest

_TEXT_KEYS = ("text_input", "text", "prompt")
_ENCODER_KEYS = ("text_pair", "question", "context")
_WORDS = ("time", "river", "seven", "light", "paper", "green", "under", "walk", "stone", "quiet")


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """One of ``text``, ``input_ids``, ``messages``, or the ``fields`` of an encoder's request. ``max_tokens``: None leaves it
    to the distribution of lengths."""

    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    candidate_labels: tuple[str, ...] = ()
    max_tokens: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """How requests are made. ``prompts``: used in turn, none: made up. ``vocabulary``: made-up token ids are below it.
    ``max_input``, ``max_output``: longer lengths, of a trace say, are cut down to these."""

    model: str
    task: str
    prompts: tuple[Prompt, ...]
    input_tokens: Lengths
    output_tokens: Lengths
    vocabulary: int
    max_input: int | None
    max_output: int | None
    parameters: Mapping[str, Any]
    candidate_labels: tuple[str, ...] = ()

    def request(self, index: int, arrival: Arrival, random_numbers: random.Random) -> GenerateRequest | EncoderRequest:
        """The request number ``index``; a trace's lengths go before the distributions'."""
        prompt = self.prompts[index % len(self.prompts)] if self.prompts else self._made_up(arrival, random_numbers)
        if self.task != GENERATION_TASK:
            return EncoderRequest(
                {**prompt.fields, **({"text_input": prompt.text} if prompt.text is not None else {})},
                candidate_labels=prompt.candidate_labels or self.candidate_labels,
                parameters=self.parameters,
            )
        output = prompt.max_tokens or arrival.output_tokens or self.output_tokens.draw(random_numbers)
        return GenerateRequest(
            self.model,
            text=prompt.text,
            messages=prompt.messages,
            input_ids=prompt.input_ids,
            parameters={"max_tokens": _cut(output, self.max_output), **self.parameters},
        )

    def _made_up(self, arrival: Arrival, random_numbers: random.Random) -> Prompt:
        length = _cut(arrival.input_tokens or self.input_tokens.draw(random_numbers), self.max_input)
        if self.task == GENERATION_TASK:
            return Prompt(input_ids=tuple(random_numbers.randrange(self.vocabulary) for _ in range(length)))
        return Prompt(text=" ".join(random_numbers.choice(_WORDS) for _ in range(length)))


def read_prompts(file: Path, task: str) -> tuple[Prompt, ...]:
    """A prompt a line; of a ``.jsonl`` file an object a line. Raises :class:`ToolError` naming the line."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"--prompts {file}: cannot be read ({error})") from None
    if not lines:
        raise ToolError(f"--prompts {file}: no prompt in it")
    if file.suffix != ".jsonl":
        return tuple(Prompt(text=line) for line in lines)
    return tuple(_from_json(line, f"--prompts {file}, object {number}", task) for number, line in enumerate(lines, start=1))


def _from_json(line: str, where: str, task: str) -> Prompt:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ToolError(f"{where}: not JSON ({error})") from None
    if not isinstance(item, dict):
        raise ToolError(f"{where}: got {line[:60]}, allowed: an object")
    text = next((str(item[key]) for key in _TEXT_KEYS if key in item), None)
    if task != GENERATION_TASK:
        fields = {key: str(item[key]) for key in _ENCODER_KEYS if key in item}
        labels = tuple(map(str, item.get("candidate_labels", ())))
        if text is None and not fields:
            raise ToolError(f"{where}: no text; allowed: {' or '.join((*_TEXT_KEYS, *_ENCODER_KEYS))}")
        return Prompt(text=text, fields=fields, candidate_labels=labels)
    ids, messages, max_tokens = item.get("input_ids"), item.get("messages"), item.get("max_tokens")
    if (text is not None) + (ids is not None) + (messages is not None) != 1:
        given = ", ".join(item) or "nothing"
        raise ToolError(f"{where}: got {given}; allowed: one of {', '.join(_TEXT_KEYS)}, input_ids, messages")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise ToolError(f"{where}: max_tokens: got {max_tokens!r}, allowed: a whole number from 1")
    if ids is not None and not (isinstance(ids, list) and ids and all(type(token) is int for token in ids)):
        raise ToolError(f"{where}: input_ids: got {str(ids)[:60]}, allowed: a list of whole numbers")
    return Prompt(text=text, input_ids=None if ids is None else tuple(ids), messages=messages, max_tokens=max_tokens)


def _cut(length: int, limit: int | None) -> int:
    return length if limit is None else min(length, limit)
