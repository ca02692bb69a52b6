"""``fastserve bench simulate`` from the outside: its report, its files, and what it says to bad input."""

from __future__ import annotations

import builtins
import json

import pytest

from fastserve.tools.cli import main


def simulate(*arguments):
    return main(["bench", "simulate", *arguments])


SMALL = ("--trace", "synthetic", "--requests", "20", "--load", "0.9")


def test_it_reports_every_policy_and_load_and_writes_a_row_for_each(capsys, tmp_path):
    file = tmp_path / "out.json"
    assert simulate(*SMALL, "--load", "0.5", "--policy", "fcfs", "--policy", "gittins", "--json", str(file)) == 0
    rows = json.loads(file.read_text())
    assert [(row["policy"], row["load"]) for row in rows] == [("fcfs", 0.9), ("gittins", 0.9), ("fcfs", 0.5), ("gittins", 0.5)]
    assert set(rows[0]) >= {"requests", "ttft_s", "normalized_latency_s", "jct_s", "output_tokens_per_s", "preemptions"}
    assert rows[0]["swapped_bytes"] == 0
    printed = capsys.readouterr().out
    assert "clipped to 2048 tokens" in printed and "by output tokens" in printed and "gittins" in printed


def test_a_trace_is_read_and_its_costs_and_limits_are_taken(capsys, tmp_path):
    trace, file = tmp_path / "trace.jsonl", tmp_path / "out.json"
    trace.write_text('{"prompt_tokens": 4, "output_tokens": 2}\n', encoding="utf-8")
    limits = ("--cost", "1000,100", "--max-seqs", "1", "--max-batched-tokens", "3", "--clip", "64", "--kv-tokens", "128")
    assert simulate("--trace", str(trace), "--policy", "fcfs", "--load", "1", *limits, "--json", str(file)) == 0
    (row,) = json.loads(file.read_text())
    assert row["jct_s"]["mean"] == pytest.approx(1.3 + 1.1 + 1.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trace", "nowhere.csv", "--policy", "fcfs", "--load", "1"), "nowhere.csv: cannot be read"),
        ((*SMALL, "--policy", "fcfs", "--json", "no/such/folder/out.json"), "cannot be written"),
        ((*SMALL, "--policy", "fcfs", "--max-batched-tokens", "3"), "--max-batched-tokens: got 3, allowed: at least --max-seqs"),
        ((*SMALL, "--policy", "fcfs", "--kv-tokens", "9"), "--kv-tokens: got 9, allowed: at least --clip"),
        ((*SMALL, "--policy", "fcfs", "--arrivals", "trace"), "--arrivals trace: the trace has too few arrival times"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_a_sentence(capsys, arguments, message):
    assert simulate(*arguments) == 1
    assert message in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policy", "lifo", "invalid choice: 'lifo'"),
        ("--load", "0", "got '0', allowed: a number above 0"),
        ("--load", "nan", "allowed: a number above 0"),
        ("--cost", "6", "got '6', allowed: two numbers of milliseconds"),
        ("--cost", "6,slow", "got 'slow', allowed: two numbers of milliseconds above 0"),
        ("--max-seqs", "0", "got '0', allowed: a whole number, at least 1"),
        ("--clip", "1", "got '1', allowed: a whole number, at least 2"),
    ],
)
def test_a_bad_option_is_refused_with_what_is_allowed(capsys, option, value, message):
    with pytest.raises(SystemExit) as caught:
        simulate(*SMALL, "--policy", "fcfs", option, value)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_plot_is_an_image_of_every_policy_and_measure(capsys, tmp_path):
    file = tmp_path / "plot.png"
    assert simulate(*SMALL, "--load", "0.5", "--policy", "fcfs", "--policy", "gittins", "--plot", str(file)) == 0
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 20_000


def test_without_matplotlib_a_plot_is_refused_before_anything_is_simulated(capsys, monkeypatch, tmp_path):
    real = builtins.__import__

    def without_matplotlib(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert simulate(*SMALL, "--policy", "fcfs", "--plot", str(tmp_path / "plot.png")) == 1
    captured = capsys.readouterr()
    assert "pip install 'triton-fastserve[plot]'" in captured.err.replace("\n", " ")
    assert captured.out == ""
