"""NVIDIA's perf_analyzer against SmolLM2 on a real Triton, streaming over gRPC; writes docs/perf_analyzer.md.

python benchmarks/bench_perf_analyzer.py [--requests N] [--max-tokens N] [--output docs/perf_analyzer.md]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from perf_analyzer_install import WHEELS, PerfAnalyzer, install
from perf_analyzer_page import page, summary_of
from report import processor
from rich.console import Console

import fastserve
from fastserve.errors import FastServeError
from fastserve.tools.bench.samples import Summary
from fastserve.tools.demo_model import prepare
from fastserve.tools.launcher import TritonLauncher

CONCURRENCIES = (1, 4, 16)
DEMO = Path(".demo")
PROMPTS = (
    "Describe a morning at a small harbour, from the first boat that leaves to the market that opens.",
    "Explain to a child why the moon changes its shape over a month.",
    "List what a beginner needs to bake bread at home, and say what each thing is for.",
    "Write a short letter to a friend who has moved to another city.",
    "What should a traveller know before crossing a desert?",
    "Compare bicycles and trams as ways to get to work.",
    "Tell the story of a clockmaker who repairs a very old clock.",
    "Give three reasons to learn a second language.",
)
INPUT_FILE = "input.json"


def input_data(max_tokens: int) -> str:
    """perf_analyzer's file of requests; every answer is ``max_tokens`` long."""
    parameters = json.dumps({"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True})
    requests = [
        {"text_input": [prompt], "stream": [True], "sampling_parameters": [parameters], "return_num_output_tokens": [True]}
        for prompt in PROMPTS
    ]
    return json.dumps({"data": requests})


def measure(
    perf_analyzer: PerfAnalyzer, target: tuple[str, str], concurrency: int, requests: int, work: Path
) -> tuple[Summary, str, list[str]]:
    """Figures, what was printed, and the arguments. ``target``: the model and the server's gRPC address."""
    model, url = target
    export = work / f"concurrency_{concurrency}.json"
    load = ["--concurrency-range", str(concurrency), "--request-count", str(requests)]
    arguments = ["-m", model, "-u", url, "-i", "grpc", "--streaming", "--async", "--input-data", INPUT_FILE, *load]
    arguments += ["--profile-export-file", export.name]
    command = [str(perf_analyzer.program), *arguments]
    environment = perf_analyzer.environment()
    export.unlink(missing_ok=True)  # it writes over nothing
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).partition("Usage:")[0].strip()
        sys.exit(f"perf_analyzer failed ({done.returncode}): {said}")
    _, summary = summary_of(json.loads(export.read_text(encoding="utf-8")))
    return summary, done.stdout, arguments


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8, help="for each unit of concurrency, and at least 16 (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each answer (default: 64)")
    parser.add_argument("--output", type=Path, default=Path("docs/perf_analyzer.md"))
    return parser.parse_args()


def main() -> int:
    options, console = parse(), Console()
    load_before = os.getloadavg()[0]
    perf_analyzer = install(DEMO / "perf_analyzer")
    try:
        model = prepare(None, DEMO)
        figures, printed, commands = {}, [], []
        with tempfile.TemporaryDirectory() as temporary, TritonLauncher(model.repository) as triton:
            work = Path(temporary)
            (work / INPUT_FILE).write_text(input_data(options.max_tokens), encoding="utf-8")
            target = (model.name, triton.grpc_url)
            measure(perf_analyzer, target, 1, 2, work)  # warms up
            for concurrency in CONCURRENCIES:
                console.print(f"concurrency {concurrency} ...")
                requests = max(16, concurrency * options.requests)
                figures[concurrency], text, arguments = measure(perf_analyzer, target, concurrency, requests, work)
                printed.append(text)
                shown = ["localhost:8001" if argument == triton.grpc_url else argument for argument in arguments]
                commands.append(shlex.join(["perf_analyzer", *shown]))
    except FastServeError as error:
        sys.exit(str(error))
    circumstances = {
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "load average before": f"{load_before:.2f}",
        "model": f"{model.name} in fp32, {len(PROMPTS)} prompts in turn, {options.max_tokens} output tokens each",
        "versions": f"FastServe {fastserve.__version__}, perf_analyzer of {WHEELS[0]}",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(figures, circumstances, commands, "\n".join(printed)), encoding="utf-8")
    console.print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
