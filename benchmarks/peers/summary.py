"""From the records of the runs to figures."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

NOT_RUN = "not run"


def figures(record: dict[str, Any]) -> dict[str, float]:
    """Of one run. Times in seconds; of a request they count from its arrival."""
    requests = record["requests"]
    completion = [request["last"] - request["at"] for request in requests]
    first = [request["first"] - request["at"] for request in requests]
    tokens = sum(request["tokens"] for request in requests)
    return {
        "tokens_per_s": tokens / max(request["last"] for request in requests),
        "completion_mean": statistics.fmean(completion),
        "completion_p50": float(np.percentile(completion, 50)),
        "completion_p99": float(np.percentile(completion, 99)),
        "first_token_mean": statistics.fmean(first),
        "first_token_p99": float(np.percentile(first, 99)),
        "peak_bytes": float(record["peak_bytes"]),
    }


def medians(files: list[Path]) -> dict[str, Any] | None:
    """Over the runs of one row; None when there is none that succeeded. ``runs``: tokens/s of each."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)]
    runs = [figures(record) for record in records if "error" not in record]
    if not runs:
        return None
    found: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**found, "runs": [run["tokens_per_s"] for run in runs], "version": records[-1].get("version", "")}


def reason(files: list[Path]) -> str:
    """Why a row has no figures."""
    for file in files:
        if error := json.loads(file.read_text(encoding="utf-8")).get("error"):
            return str(error)
    return NOT_RUN
