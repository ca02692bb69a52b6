"""What a simulated server is asked: lengths of prompts and answers from a trace, and when they arrive at a given load."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastserve.core.cost_model import CostModel
from fastserve.errors import ToolError
from fastserve.timestamps import timestamp_seconds

SYNTHETIC = "synthetic"
ARRIVALS = ("poisson", "gamma", "trace")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One request of a trace. ``arrival_s``: seconds since the first."""

    prompt_tokens: int
    output_tokens: int
    arrival_s: float = 0.0


def read_trace(path: Path) -> list[Job]:
    """Azure's CSV (TIMESTAMP,ContextTokens,GeneratedTokens) or JSON lines, by the first character of the file.

    A line is {"prompt_tokens": n, "output_tokens": n, "timestamp": seconds}, or AIBrix's {"timestamp": milliseconds, "requests":
    [{"Prompt Length": n, "Output Length": n}, ...]}. Raises ToolError naming the row and the field of what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ToolError(f"{path}: is not text: a trace is CSV or JSON lines") from None
    rows = _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text)
    jobs = list(rows)
    if not jobs:
        raise ToolError(f"{path}: holds no requests")
    first = min(job.arrival_s for job in jobs)
    jobs = [dataclasses.replace(job, arrival_s=job.arrival_s - first) for job in jobs]
    return sorted(jobs, key=lambda job: job.arrival_s)


def _csv_rows(path: Path, text: str) -> Iterator[Job]:
    reader = csv.DictReader(text.splitlines())
    for name in ("TIMESTAMP", "ContextTokens", "GeneratedTokens"):
        if name not in (reader.fieldnames or ()):
            raise ToolError(f"{path}: the first row names no column {name}; a CSV has TIMESTAMP,ContextTokens,GeneratedTokens")
    for row in reader:
        place = f"{path}:{reader.line_num}"
        yield Job(
            _count(place, "ContextTokens", row["ContextTokens"]),
            _count(place, "GeneratedTokens", row["GeneratedTokens"]),
            _date(place, row["TIMESTAMP"]),
        )


def _json_rows(path: Path, text: str) -> Iterator[Job]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ToolError(f"{place}: is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ToolError(f"{place}: got {line[:40]!r}, allowed: a JSON object")
        time_s = _number(place, "timestamp", row.get("timestamp", 0))
        if "requests" not in row:
            yield _job(place, row, ("prompt_tokens", "output_tokens"), time_s)
            continue
        if not isinstance(row["requests"], list):
            raise ToolError(f"{place}: requests: got {row['requests']!r}, allowed: a list")
        for request in row["requests"]:
            if not isinstance(request, dict):
                raise ToolError(f"{place}: requests: got {request!r} in it, allowed: JSON objects")
            yield _job(place, request, ("Prompt Length", "Output Length"), time_s / 1000)


def _job(place: str, row: dict[str, Any], names: tuple[str, str], time_s: float) -> Job:
    prompt, output = (_count(place, name, row.get(name)) for name in names)
    return Job(prompt, output, time_s)


def _count(place: str, name: str, value: Any) -> int:
    """A whole number of tokens; none counts as 1, because even an answer that ends at once takes a step."""
    try:
        if isinstance(value, (str, int)) and not isinstance(value, bool) and int(value) >= 0:
            return max(int(value), 1)
    except ValueError:
        pass
    raise ToolError(f"{place}: {name}: got {value!r}, allowed: a whole number of tokens, at least 0")


def _number(place: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ToolError(f"{place}: {name}: got {value!r}, allowed: a number")
    return float(value)


def _date(place: str, text: Any) -> float:
    try:
        return timestamp_seconds(str(text))
    except ValueError:
        raise ToolError(f"{place}: TIMESTAMP: got {text!r}, allowed: a date and time such as 2023-11-16 18:15:46.68") from None


def synthetic_jobs(count: int, random_: random.Random) -> list[Job]:
    """Lengths of an invented chat: log-normal, prompts of 120 tokens and answers of 150 in the median, with long tails."""
    lengths = random_.lognormvariate
    return [Job(max(1, round(lengths(4.8, 1.1))), max(1, round(lengths(5.0, 1.0)))) for _ in range(count)]


def draw(trace: str, limit: int, count: int | None, random_: random.Random, *, skip: int = 0) -> list[Job]:
    """``count`` jobs (None: all, or 2,000) of a file for :func:`read_trace` but for the first ``skip``, or invented ones when
    ``trace`` is :data:`SYNTHETIC`, clipped to ``limit`` tokens. Raises ToolError."""
    jobs = synthetic_jobs(count or 2000, random_) if trace == SYNTHETIC else read_trace(Path(trace))
    return take(clip(jobs[skip:], limit), count or len(jobs), random_)


def clip(jobs: Sequence[Job], limit: int) -> list[Job]:
    """Jobs that fit a model of ``limit`` tokens: outputs of at most half of it, prompts of at most the rest."""
    clipped = []
    for job in jobs:
        output = min(job.output_tokens, limit // 2)
        clipped.append(dataclasses.replace(job, prompt_tokens=min(job.prompt_tokens, limit - output), output_tokens=output))
    return clipped


def take(jobs: Sequence[Job], count: int, random_: random.Random) -> list[Job]:
    """The first ``count`` jobs; when there are fewer, all of them and others drawn from them at random."""
    return [*jobs[:count], *(random_.choice(jobs) for _ in range(count - len(jobs)))]


def _work_s(job: Job, costs: CostModel) -> float:
    """What the job takes from a machine with full batches."""
    context = job.prompt_tokens + job.output_tokens / 2  # behind an output token, on average
    return costs.prefill_seconds(job.prompt_tokens) + job.output_tokens * costs.decode_seconds(context)


def arrive(jobs: Sequence[Job], load: float, costs: CostModel, *, pattern: str, random_: random.Random) -> list[Job]:
    """The jobs at times that make the work that arrives ``load`` times what the machine can do with full batches.

    ``pattern``: ``poisson``; ``gamma``, bursts with a coefficient of variation of 2; or ``trace``, the trace's own times,
    stretched. Raises ToolError when the trace has no times.
    """
    work = sum(_work_s(job, costs) for job in jobs) / len(jobs)
    mean_gap = work / load
    if pattern == "trace":
        span = jobs[-1].arrival_s - jobs[0].arrival_s
        if span <= 0 or any(later.arrival_s < earlier.arrival_s for earlier, later in itertools.pairwise(jobs)):
            raise ToolError("--arrivals trace: the trace has too few arrival times for it; allowed: poisson or gamma")
        times = [(job.arrival_s - jobs[0].arrival_s) * mean_gap * len(jobs) / span for job in jobs]
    else:
        shape = 1.0 if pattern == "poisson" else 0.25
        times, now = [], 0.0
        for _ in jobs:
            times.append(now)
            now += random_.gammavariate(shape, mean_gap / shape)
    return [dataclasses.replace(job, arrival_s=time) for job, time in zip(jobs, times, strict=True)]
