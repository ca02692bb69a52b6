"""When requests of an open loop are sent: at random, or as a trace says."""

from __future__ import annotations

import csv
import dataclasses
import random
from pathlib import Path

from fastserve.errors import ToolError
from fastserve.timestamps import timestamp_seconds

_ALLOWED = "a time in seconds or as YYYY-MM-DD HH:MM:SS, then optionally the tokens of prompt and answer"


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """``at``: seconds after the first. Lengths in tokens, None where the trace does not say."""

    at: float
    input_tokens: int | None = None
    output_tokens: int | None = None


def poisson(rate: float, count: int, random_numbers: random.Random) -> list[Arrival]:
    """``count`` arrivals at ``rate`` a second on average, with exponential gaps; the first at 0."""
    at, arrivals = 0.0, []
    for _ in range(count):
        arrivals.append(Arrival(at))
        at += random_numbers.expovariate(rate)
    return arrivals


def read_trace(file: Path, speed: float) -> list[Arrival]:
    """A CSV file, a request a line: time, tokens of the prompt, tokens of the answer; the last two may be missing. A heading
    is left out. ``speed``: 2 plays it twice as fast. Raises :class:`ToolError` naming the line."""
    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"--trace {file}: cannot be read ({error})") from None
    arrivals = []
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        try:
            arrivals.append(Arrival(_seconds(row[0]), *(_tokens(cell) for cell in row[1:3])))
        except ValueError:
            if number > 1:  # else a heading
                raise ToolError(f"--trace {file}, line {number}: got {','.join(row)}, allowed: {_ALLOWED}") from None
    if not arrivals:
        raise ToolError(f"--trace {file}: no request in it")
    arrivals.sort(key=lambda arrival: arrival.at)
    return [dataclasses.replace(arrival, at=(arrival.at - arrivals[0].at) / speed) for arrival in arrivals]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return timestamp_seconds(text)


def _tokens(text: str) -> int | None:
    if not text.strip():
        return None
    if (tokens := int(text)) < 1:
        raise ValueError
    return tokens
