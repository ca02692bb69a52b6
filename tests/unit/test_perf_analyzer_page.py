"""The page of `make bench-perf-analyzer`: figures from perf_analyzer's export, and the page that is in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.perf_analyzer_page import BUSY, COMMAND, page, summary_of, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "perf_analyzer.md"
SECOND = 1_000_000_000


def export(*requests: dict[str, Any], concurrency: int = 4) -> dict[str, Any]:
    """As --profile-export-file writes it."""
    return {"experiments": [{"experiment": {"mode": "concurrency", "value": concurrency}, "requests": list(requests)}]}


def request(sent: int, responses: list[tuple[int, int]]) -> dict[str, Any]:
    """``responses``: (seconds, tokens)."""
    return {
        "timestamp": sent * SECOND,
        "response_timestamps": [at * SECOND for at, _ in responses],
        "response_outputs": [{"text_output": "x", "num_output_tokens": tokens} for _, tokens in responses],
    }


def test_figures_are_computed_from_the_times_of_every_response() -> None:
    concurrency, summary = summary_of(export(request(10, [(12, 1), (14, 2), (15, 0)]), request(11, [(12, 1)])))
    assert concurrency == 4
    assert (summary.requests, summary.output_tokens, summary.failures) == (2, 4, {})
    assert summary.seconds == pytest.approx(5)
    assert summary.distributions["time_to_first_token"].mean == pytest.approx(1.5)
    assert summary.distributions["inter_token"].mean == pytest.approx(1.0)


@pytest.mark.parametrize("failed", [request(1, []), request(1, [(2, 0)]), {**request(1, [(2, 1)]), "success": False}])
def test_a_request_without_an_answer_is_a_failure(failed: dict[str, Any]) -> None:
    _, summary = summary_of(export(failed, request(0, [(1, 1)])))
    assert summary.failures == {"FAILED": 1} and summary.succeeded == 1


@pytest.mark.parametrize(("load", "warned"), [(BUSY - 0.1, False), (BUSY + 0.1, True)])
def test_a_page_says_when_the_machine_was_busy(load: float, warned: bool) -> None:
    _, summary = summary_of(export(request(0, [(1, 1), (2, 1)])))
    written = page({16: summary}, {"load average before": f"{load:.2f}"}, ["perf_analyzer -m x"], "printed")
    assert ("The machine was busy" in written) is warned
    assert table({16: summary}) in written and "perf_analyzer -m x" in written


def test_the_page_in_the_documentation_is_the_scripts_and_has_every_concurrency() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"Written by `{COMMAND}`" in text and f"\n{COMMAND.split()[1]}:" in (ROOT / "Makefile").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    assert [int(concurrency) for concurrency, _, _ in rows] == [1, 4, 16]
    assert all(int(requests) >= 16 and int(failed) == 0 for _, requests, failed in rows)
