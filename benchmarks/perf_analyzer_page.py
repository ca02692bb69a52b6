"""What perf_analyzer exported, as figures and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastserve.tools.bench.samples import Sample, Summary, summarize

COMMAND = "make bench-perf-analyzer"
BUSY = 0.5
"""A load average above this, before anything was started, makes the figures worthless."""
_NANOSECOND = 1e-9


def summary_of(export: Mapping[str, Any]) -> tuple[int, Summary]:
    """(concurrency, figures) of a file that ``--profile-export-file`` wrote with one experiment in it.

    Its times are nanoseconds; each response names the tokens in it because the requests ask for num_output_tokens. A response
    without tokens says only that the stream has ended.
    """
    (experiment,) = export["experiments"]
    return int(experiment["experiment"]["value"]), summarize([_sample(request) for request in experiment["requests"]])


def _sample(request: Mapping[str, Any]) -> Sample:
    answered = zip(request["response_timestamps"], request["response_outputs"], strict=True)
    responses = [(time * _NANOSECOND, int(outputs.get("num_output_tokens", 0))) for time, outputs in answered]
    started = request["timestamp"] * _NANOSECOND
    arrivals = tuple((at, tokens) for at, tokens in responses if tokens)
    if not request.get("success", True) or not arrivals:
        return Sample(started, responses[-1][0] if responses else started, error="FAILED")
    return Sample(started, responses[-1][0], arrivals)


def table(figures: Mapping[int, Summary]) -> str:
    """Markdown, a row for each concurrency."""
    lines = [
        "| concurrency | requests | failed | output tokens/s | first token ms, p50 / p95 | between tokens ms, p50 / p95 "
        "| completion ms, p50 / p95 / p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for concurrency, summary in sorted(figures.items()):
        failed = sum(summary.failures.values())
        measures = [
            _percentiles(summary, "time_to_first_token", (50, 95)),
            _percentiles(summary, "inter_token", (50, 95)),
            _percentiles(summary, "completion", (50, 95, 99)),
        ]
        cells = [str(concurrency), str(summary.requests), str(failed), f"{summary.tokens_per_second:.1f}", *measures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(figures: Mapping[int, Summary], circumstances: Mapping[str, str], commands: Sequence[str], report: str) -> str:
    """``report``: what perf_analyzer itself printed. ``circumstances``: what the figures depend on, by name."""
    busy = float(circumstances["load average before"]) > BUSY
    warning = (
        "**The machine was busy with other work while this was measured: the figures show that it runs, not how fast.**\n\n"
        if busy
        else ""
    )
    facts = "\n".join(f"- {name}: {value}" for name, value in circumstances.items())
    return f"""# perf_analyzer

Written by `{COMMAND}`; do not edit. It fetches NVIDIA's own perf_analyzer into `.demo/perf_analyzer` (no root, no GPU), serves
SmolLM2-135M-Instruct with a real Triton, and measures it over gRPC streaming at each concurrency.

{warning}{table(figures)}

The columns are computed from the times of every response, which perf_analyzer exports: a response usually holds one token,
several where more than four streams are answered; they share the time since the response before.

{facts}

## The commands

```bash
{chr(10).join(commands)}
```

## What perf_analyzer printed

```
{report.strip()}
```
"""


def _percentiles(summary: Summary, measure: str, shares: Sequence[int]) -> str:
    found = summary.distributions.get(measure)
    return "-" if found is None else " / ".join(f"{found.percentiles[share] * 1e3:.1f}" for share in shares)
