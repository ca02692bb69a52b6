"""Policies on the real engine, through a real Triton, beside the simulator's prediction: ``make bench-policies``.

Every policy serves the same chat prompts at the same times, with lengths of answers as in the trace: each answer is drawn with a
seed of its own, so it is the same under every policy, and a stop token ends it where it should, which no policy can foresee. They
take turns, each with a Triton of its own, and every round begins with another one. Nobody has learned anything but from a few
requests that fill the server's memory: what is written to for the first time is slow. The load is that of a machine whose steps
cost what the server had learned when everybody asked at once; a drawn token is one for which a client beside it has received a
response. The simulator is given what the steps of the very run cost that it is compared with, because machines are not the same
from one minute to the next.

A slice is that measurement ("all at once"), or one round at one load; results so far are kept in ``--output``, and ``--slices N``
does the next N, so that each is a few minutes of a quiet machine. Run again to go on; other settings start anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policy_prediction import COST_AWARE, POLICIES, SWAPPING, all_at_once_simulated_s, arrivals, endings_of, filling_jobs, predict
from policy_results import summarize_costs, summarize_runs
from policy_workload import MARGIN, Ask, Ending, asks_of, ending_near, parameters
from report import RESULTS, SEED, processor, write_json
from rich.console import Console

from fastserve.core.cost_model import read_costs
from fastserve.errors import FastServeError, ToolError
from fastserve.manifest import ModelManifest
from fastserve.simulator.workload import Job
from fastserve.tools.bench.display import watched
from fastserve.tools.bench.load import WallClock, ask_generator, open_loop
from fastserve.tools.bench.samples import Sample
from fastserve.tools.client import GenerateRequest, connect
from fastserve.tools.demo_model import prepare
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.worker.kv_cache import bytes_per_block

DEMO = Path(".demo")
BLOCK_SIZE = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """``load``: None is everybody at once."""

    load: float | None
    round: int


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What all slices have in common. ``settings``: they decide whether results belong together."""

    arguments: argparse.Namespace
    model: Path
    asks: Sequence[Ask]
    settings: Mapping[str, Any]
    block_bytes: int
    """Of the model's KV pool."""

    def settings_of(self, policy: str) -> dict[str, Any]:
        """Of config.pbtxt."""
        arguments = self.arguments
        pool_bytes = arguments.max_seqs * arguments.max_model_len // BLOCK_SIZE * self.block_bytes
        return {
            "policy": policy,
            "max_num_seqs": arguments.max_seqs,
            "max_batched_tokens": arguments.max_batched_tokens,
            "max_model_len": arguments.max_model_len,
            "block_size": BLOCK_SIZE,
            "kv_cache_bytes": pool_bytes,
            "swap_space_bytes": 4 * pool_bytes,
            "prefix_cache": "off",  # the simulator computes every token
            **SWAPPING,
        }


def slices(arguments: argparse.Namespace) -> Iterator[Slice]:
    yield Slice(None, 0)
    for number in range(arguments.rounds):
        for load in arguments.load:
            yield Slice(load, number)


def run_slice(bench: Bench, part: Slice, found: dict[str, Any]) -> None:
    """Adds what was measured to ``found``."""
    if part.load is None:
        with _serving(bench, COST_AWARE) as (url, costs_s):
            seconds = _all_at_once(bench, url, found)
        found.update(costs_s=costs_s, all_at_once_s=seconds)
    else:
        _measure_policies(bench, part, found)


@contextmanager
def _serving(bench: Bench, policy: str) -> Iterator[tuple[str, dict[str, float]]]:
    """A Triton with a model of that name; its gRPC address, and what its steps cost, which is there when it has ended."""
    costs_s: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _add_model(work / "repository" / policy, bench.model, bench.settings_of(policy))
        options = LaunchOptions(environment={"FASTSERVE_CACHE": str(work / "cache")})
        with TritonLauncher(work / "repository", options) as triton:
            _fill_memory(bench, triton.grpc_url, policy)
            yield triton.grpc_url, costs_s
        (file,) = work.glob("cache/costs-*.json")
        costs_s.update(dataclasses.asdict(read_costs(json.loads(file.read_text(encoding="utf-8")))))


def _fill_memory(bench: Bench, url: str, policy: str) -> None:
    """A full batch of requests with long prompts, so that no request that counts grows into memory nobody wrote to."""
    jobs = filling_jobs(bench.arguments)
    how = {
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": jobs[0].output_tokens,
        "truncate_prompt_tokens": jobs[0].prompt_tokens,
    }
    request = GenerateRequest(policy, text="word " * jobs[0].prompt_tokens, parameters=how)
    clock = WallClock()
    with connect(url) as client, watched(len(jobs)) as seen:
        _raise_failed(
            open_loop(lambda _, started: ask_generator(client, request, started, clock), [0.0] * len(jobs), clock, seen), policy
        )


def _measure_policies(bench: Bench, part: Slice, found: dict[str, Any]) -> None:
    """One after the other, each round beginning with another one."""
    assert part.load is not None
    due, endings = [job.arrival_s for job in arrivals(found, part.load, bench.arguments)], endings_of(found)
    policies = list(bench.arguments.policy)
    turn = part.round % len(policies)
    runs = []
    for policy in policies[turn:] + policies[:turn]:
        with _serving(bench, policy) as (url, costs_s):
            samples = _run(bench, url, policy, due, endings)
        other = sum(sample.output_tokens != ending.output_tokens for sample, ending in zip(samples, endings, strict=True))
        what = {"load": part.load, "round": part.round, "policy": policy, "answers_of_other_length": other}
        runs.append({**what, "costs_s": costs_s, **_figures(samples)})
    found["runs"] += runs


def _add_model(folder: Path, model: Path, parameters: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    (folder / "config.pbtxt").write_text("\n".join(['backend: "fastserve"', *lines, ""]), encoding="utf-8")
    (folder / "1").symlink_to(model.resolve())


def _run(bench: Bench, url: str, policy: str, due: Sequence[float], endings: Sequence[Ending]) -> list[Sample]:
    """Samples in the order of the prompts. Raises ToolError when a request failed."""
    clock = WallClock()
    found: dict[int, Sample] = {}
    with connect(url) as client, watched(len(due)) as seen:

        def ask(number: int, started: float) -> Sample:
            how = parameters(number, bench.arguments, endings[number])
            request = GenerateRequest(policy, messages=bench.asks[number].messages, parameters=how)
            found[number] = ask_generator(client, request, started, clock)
            return found[number]

        _raise_failed(open_loop(ask, due, clock, seen), policy)
    return [found[number] for number in range(len(due))]


def _raise_failed(samples: Sequence[Sample], policy: str) -> None:
    if failed := [sample for sample in samples if sample.error is not None]:
        raise ToolError(f"{len(failed)} requests failed under {policy}: {failed[0].error}: {failed[0].message}")


def _all_at_once(bench: Bench, url: str, found: dict[str, Any]) -> float:
    """Finds where answers can be made to end; the seconds it took."""
    clock, token_ids, inputs = WallClock(), dict[int, list[int]](), dict[int, int]()
    with connect(url) as client, watched(len(bench.asks)) as seen:

        def ask(number: int, started: float) -> Sample:
            wanted = bench.asks[number]
            how = {**parameters(number, bench.arguments, None), "max_tokens": wanted.output_tokens + MARGIN}
            returns = ("num_input_tokens", "output_ids")
            request = GenerateRequest(COST_AWARE, messages=wanted.messages, parameters=how, returns=returns)
            with client.stream(request) as responses:
                answers = list(responses)
            token_ids[number] = [token for answer in answers for token in answer.output_ids]
            inputs[number] = next(answer.num_input_tokens for answer in answers if answer.num_input_tokens)
            return Sample(started, answers[-1].arrival)

        samples = open_loop(ask, [0.0] * len(bench.asks), clock, seen)
    endings = [ending_near(token_ids[number], inputs[number], ask.output_tokens) for number, ask in enumerate(bench.asks)]
    found["endings"] = [dataclasses.asdict(ending) for ending in endings]
    found["asked"] = [dataclasses.asdict(Job(inputs[number], len(token_ids[number]))) for number in range(len(samples))]
    return max(sample.ended for sample in samples) - min(sample.started for sample in samples)


def _figures(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Seconds, for each request in order."""
    return {
        "ttft_s": [sample.first for sample in samples],
        "jct_s": [sample.completion for sample in samples],
        "normalized_latency_s": [sample.completion / sample.output_tokens for sample in samples],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="JSON lines with prompts (AIBrix's ShareGPT format); none: made-up questions")
    parser.add_argument("--model", type=Path, help="version folder of an exported model (the demo's)")
    parser.add_argument("--policy", action="append", choices=POLICIES)
    parser.add_argument("--load", action="append", type=float, help="of what the machine can do (0.7 and 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--input-tokens", type=int, default=256, help="longer prompts lose their beginning (256)")
    parser.add_argument("--output-tokens", type=int, default=256, help="longer answers are cut (256)")
    parser.add_argument("--max-seqs", type=int, default=16)
    parser.add_argument("--max-batched-tokens", type=int, default=128)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--slices", type=int, default=10**6, help="to do now (all)")
    parser.add_argument("--output", type=Path, default=RESULTS / "policies.json")
    arguments = parser.parse_args()
    arguments.policy = arguments.policy or list(POLICIES)
    arguments.load = arguments.load or [0.7, 1.0]
    return arguments


def read_results(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of slices done before with the same settings."""
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["settings"] == settings:
            return found
    return {"settings": settings, "processor": processor(), "done": [], "runs": []}


def main() -> None:
    arguments, console = parse(), Console()
    left_out = ("slices", "output", "rounds")
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in left_out}
    try:
        if arguments.model is None:
            demo = prepare(None, DEMO)
            arguments.model = demo.repository / demo.name / "1"
        cache = ModelManifest.load(arguments.model).cache
        if cache is None:
            raise ToolError(f"--model {arguments.model}: generates no text")
        bench = Bench(arguments, arguments.model, asks_of(arguments), settings, bytes_per_block(cache, BLOCK_SIZE, "fp32"))
        found = read_results(arguments.output, settings)
        found["windows"] = [layer.window for layer in cache.layers]
        todo = [part for part in slices(arguments) if [part.load, part.round] not in found["done"]]
        for part in todo[: arguments.slices]:
            console.print("all at once ..." if part.load is None else f"load {part.load:g}, round {part.round + 1} ...")
            run_slice(bench, part, found)
            found["done"].append([part.load, part.round])
            write_json(found, arguments.output, console)
    except FastServeError as error:
        sys.exit(str(error))
    summarize_costs(found, all_at_once_simulated_s(found, arguments), console)
    if found["runs"]:
        summarize_runs(found, [predict(run, found, arguments) for run in found["runs"]], console)


if __name__ == "__main__":
    main()
