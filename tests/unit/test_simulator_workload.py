"""Traces are read or refused by row and field; loads are what they are called."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from fastserve.core.step_work import StepCosts
from fastserve.errors import ToolError
from fastserve.simulator.simulation import Machine
from fastserve.simulator.workload import Job, arrive, clip, read_trace, synthetic_jobs

COSTS = Machine(StepCosts(0.006, 0.0015)).cost_model()
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(tmp_path, text):
    file = tmp_path / "trace"
    file.write_text(text, encoding="utf-8")
    return read_trace(file)


def test_azures_csv_is_read_with_its_times_from_zero(tmp_path):
    jobs = trace(tmp_path, HEADER + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n")
    assert [(job.prompt_tokens, job.output_tokens) for job in jobs] == [(374, 44), (396, 109)]
    assert [job.arrival_s for job in jobs] == pytest.approx([0.0, 4.314579], abs=1e-6)


def test_json_lines_are_read_in_both_forms_and_by_time(tmp_path):
    plain = (
        '{"prompt_tokens": 7, "output_tokens": 3, "timestamp": 4}\n\n{"prompt_tokens": 9, "output_tokens": 2, "timestamp": 1.5}\n'
    )
    assert trace(tmp_path, plain) == [Job(9, 2, 0.0), Job(7, 3, 2.5)]
    timeless = '{"prompt_tokens": 7, "output_tokens": 3}\n'
    assert trace(tmp_path, timeless) == [Job(7, 3)]
    aibrix = (
        '{"timestamp": 1000, "requests": [{"Prompt Length": 5, "Output Length": 0, "prompt": "hi"}]}\n'
        '{"timestamp": 3000, "requests": [{"Prompt Length": 6, "Output Length": 8}, {"Prompt Length": 7, "Output Length": 9}]}\n'
    )
    assert trace(tmp_path, aibrix) == [Job(5, 1, 0.0), Job(6, 8, 2.0), Job(7, 9, 2.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no column TIMESTAMP"),
        (HEADER, "holds no requests"),
        ("TIMESTAMP,ContextTokens\n", "names no column GeneratedTokens"),
        (HEADER + "2023-11-16 18:15:46,374,many\n", r":2: GeneratedTokens: got 'many', allowed: a whole number of tokens"),
        (HEADER + "2023-11-16 18:15:46,374\n", r":2: GeneratedTokens: got None"),
        (HEADER + "2023-11-16 18:15:46,-4,5\n", r":2: ContextTokens: got '-4'"),
        (HEADER + "2023-11-16 18:15:46,4,5\nyesterday,4,5\n", r":3: TIMESTAMP: got 'yesterday', allowed: a date and time"),
        ("{oops\n", r":1: is not JSON"),
        ('{"prompt_tokens": 5}\n', r":1: output_tokens: got None"),
        ('{"prompt_tokens": 5, "output_tokens": true}\n', r":1: output_tokens: got True"),
        ('{"prompt_tokens": 5, "output_tokens": 2.5}\n', r":1: output_tokens: got 2.5"),
        ('{"prompt_tokens": 5, "output_tokens": 2, "timestamp": "noon"}\n', r":1: timestamp: got 'noon', allowed: a number"),
        ('{"timestamp": 5, "requests": 7}\n', r":1: requests: got 7, allowed: a list"),
        ('{"timestamp": 5, "requests": [7]}\n', r":1: requests: got 7 in it"),
        ('{"prompt_tokens": 5, "output_tokens": 2}\n[1]\n', r":2: got '\[1\]', allowed: a JSON object"),
        ('{"timestamp": 5, "requests": [{"Prompt Length": 5}]}\n', r":1: Output Length: got None"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_the_field_and_what_is_allowed(tmp_path, text, message):
    with pytest.raises(ToolError, match=message):
        trace(tmp_path, text)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(ToolError, match="nowhere: cannot be read: No such file"):
        read_trace(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ToolError, match="is not text"):
        read_trace(tmp_path / "binary")


def test_clipped_jobs_fit_and_keep_at_least_half_for_the_prompt():
    jobs = clip([Job(5000, 5000), Job(10, 5000), Job(5000, 10), Job(10, 10)], 100)
    assert [(job.prompt_tokens, job.output_tokens) for job in jobs] == [(50, 50), (10, 50), (90, 10), (10, 10)]


@pytest.mark.parametrize("pattern", ["poisson", "gamma"])
@pytest.mark.parametrize("load", [0.5, 1.1])
def test_the_work_that_arrives_is_the_load_times_what_can_be_done(pattern, load):
    jobs = arrive(synthetic_jobs(20_000, random.Random(0)), load, COSTS, pattern=pattern, random_=random.Random(1))
    work = sum(job.prompt_tokens * 0.0015 + job.output_tokens * (0.0015 + 0.006 / 16) for job in jobs)
    assert work / jobs[-1].arrival_s == pytest.approx(load, rel=0.05)
    gaps = [later.arrival_s - earlier.arrival_s for earlier, later in itertools.pairwise(jobs)]
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1.0 if pattern == "poisson" else 2.0, rel=0.1)


def test_a_traces_own_times_are_stretched():
    jobs = arrive([Job(10, 10, 0.0), Job(10, 10, 1.0), Job(10, 10, 4.0)], 0.5, COSTS, pattern="trace", random_=random.Random(0))
    work = 3 * (10 * 0.0015 + 10 * (0.0015 + 0.006 / 16))
    assert [job.arrival_s for job in jobs] == pytest.approx([0.0, work / 0.5 / 4, work / 0.5])


def test_a_trace_without_times_cannot_be_replayed_by_them():
    with pytest.raises(ToolError, match=r"^--arrivals trace: .*allowed: poisson or gamma"):
        arrive([Job(1, 1), Job(1, 1)], 0.5, COSTS, pattern="trace", random_=random.Random(0))
