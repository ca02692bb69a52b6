"""What `fastserve bench serve` asks and when: lengths, arrivals, prompts; every mistake in a file names its line."""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from fastserve.errors import ToolError
from fastserve.tools.bench.arrivals import Arrival, poisson, read_trace
from fastserve.tools.bench.lengths import Lengths, lengths
from fastserve.tools.bench.workload import Prompt, Workload, read_prompts
from fastserve.tools.client import GenerateRequest
from fastserve.tools.encoder_client import EncoderRequest

GENERATION = "text-generation"


def workload(**changes: Any) -> Workload:
    settings = {
        "model": "llama",
        "task": GENERATION,
        "prompts": (),
        "input_tokens": Lengths(3, 5),
        "output_tokens": Lengths(7, 7),
        "vocabulary": 10,
        "max_input": None,
        "max_output": None,
        "parameters": {"temperature": 0},
    }
    return Workload(**(settings | changes))


@pytest.mark.parametrize(("text", "parsed"), [("64", Lengths(64, 64)), ("8-32", Lengths(8, 32)), ("exp:100", Lengths(1, 1, 100))])
def test_lengths_are_read_and_written_alike(text: str, parsed: Lengths) -> None:
    assert lengths(text) == parsed and str(parsed) == text


@pytest.mark.parametrize("text", ["", "0", "-3", "9-2", "a-b", "exp:", "exp:0", "exp:x", "1.5"])
def test_lengths_that_are_none_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed: N"):
        lengths(text)


def test_lengths_follow_their_distribution_and_are_never_zero() -> None:
    numbers = random.Random(0)
    uniform = [Lengths(2, 4).draw(numbers) for _ in range(200)]
    assert set(uniform) == {2, 3, 4}
    exponential = [Lengths(1, 1, 50).draw(numbers) for _ in range(5000)]
    assert min(exponential) >= 1 and 47 < statistics.mean(exponential) < 53


def test_poisson_arrivals_begin_at_zero_ascend_and_have_the_rate() -> None:
    arrivals = [arrival.at for arrival in poisson(4.0, 4000, random.Random(1))]
    assert arrivals[0] == 0 and arrivals == sorted(arrivals)
    assert 3.8 < 4000 / arrivals[-1] < 4.2


def test_a_trace_of_dates_with_lengths_begins_at_zero_and_can_be_sped_up(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,prompt,answer\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.4951690,374,44\n")
    first, second = read_trace(file, 2.0)
    assert (first.at, first.input_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.at == pytest.approx(2.25, abs=1e-4) and second.input_tokens == 396


def test_a_trace_may_be_times_alone(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("10\n10.5\n\n12,,8\n")
    assert read_trace(file, 1.0) == [Arrival(0.0), Arrival(0.5), Arrival(2.0, None, 8)]


@pytest.mark.parametrize(
    ("text", "words"), [("", "no request"), ("time\n", "no request"), ("1\nsoon\n", "line 2"), ("1\n2,0\n", "line 2")]
)
def test_a_trace_that_cannot_be_read_names_the_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(ToolError, match=words):
        read_trace(tmp_path / "trace", 1.0)
    with pytest.raises(ToolError, match="cannot be read"):
        read_trace(tmp_path / "nothing", 1.0)


def test_made_up_prompts_have_the_lengths_that_were_asked_for_and_the_same_seed_gives_the_same() -> None:
    def requests(seed: int) -> list[Any]:
        numbers = random.Random(seed)
        return [workload().request(index, Arrival(0.0), numbers) for index in range(20)]

    made = requests(3)
    assert all(isinstance(request, GenerateRequest) and 3 <= len(request.input_ids) <= 5 for request in made)
    assert all(0 <= token < 10 for request in made for token in request.input_ids)
    assert {request.parameters["max_tokens"] for request in made} == {7}
    assert made == requests(3) != requests(4)


def test_a_traces_lengths_go_first_and_are_cut_down_to_the_limits() -> None:
    request = workload(max_input=50, max_output=20).request(0, Arrival(0.0, 374, 44), random.Random(0))
    assert isinstance(request, GenerateRequest) and request.input_ids is not None
    assert (len(request.input_ids), request.parameters["max_tokens"]) == (50, 20)


def test_prompts_of_a_file_are_used_in_turn_with_their_own_length(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    items = [{"prompt": "one", "max_tokens": 3}, {"input_ids": [1, 2]}, {"messages": [{"role": "user", "content": "hi"}]}]
    file.write_text("\n".join(map(json.dumps, items)))
    prompts = read_prompts(file, GENERATION)
    assert prompts == (Prompt("one", max_tokens=3), Prompt(input_ids=(1, 2)), Prompt(messages=items[2]["messages"]))  # type: ignore[arg-type]
    work = workload(prompts=prompts)
    made: list[Any] = [work.request(index, Arrival(0.0), random.Random(0)) for index in range(4)]
    assert [request.text for request in made] == ["one", None, None, "one"]
    assert [request.parameters["max_tokens"] for request in made] == [3, 7, 7, 3]


def test_an_encoder_gets_its_inputs_from_a_file_or_random_words(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "who?", "context": "Ada."}\n{"text": "a", "text_pair": "b", "candidate_labels": ["x"]}\n')
    work = workload(task="question-answering", prompts=read_prompts(file, "question-answering"))
    first, second = (work.request(index, Arrival(0.0), random.Random(0)) for index in range(2))
    assert isinstance(first, EncoderRequest) and first.texts == {"question": "who?", "context": "Ada."}
    assert isinstance(second, EncoderRequest) and second.texts == {"text_pair": "b", "text_input": "a"}
    assert second.candidate_labels == ("x",)
    made_up = workload(task="token-classification").request(0, Arrival(0.0), random.Random(0))
    assert isinstance(made_up, EncoderRequest) and 3 <= len(made_up.texts["text_input"].split()) <= 5


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "\n \n", "no prompt"),
        ("p.jsonl", '{"text": "a"}\nnot json\n', "object 2: not JSON"),
        ("p.jsonl", "[1]\n", "allowed: an object"),
        ("p.jsonl", '{"text": "a", "input_ids": [1]}\n', "object 1: got text, input_ids; allowed: one of"),
        ("p.jsonl", '{"text": "a", "max_tokens": 0}\n', "max_tokens: got 0"),
        ("p.jsonl", '{"input_ids": ["a"]}\n', "input_ids: got"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_names_the_place(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ToolError, match=words):
        read_prompts(tmp_path / name, GENERATION)
