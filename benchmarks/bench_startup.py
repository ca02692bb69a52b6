"""How long a model takes until it answers, and what memory it then has: through Triton from the load request to READY, in process
from the files to a warm engine.

    python benchmarks/bench_startup.py MODEL_FOLDER... [--rounds N]

MODEL_FOLDER: a model's folder in a repository, with its config.pbtxt. Rounds alternate between the models; the first, which may
read the disk, counts for none of the medians. RSS counts every page a process maps, PSS a page of n processes as 1/n of one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from bench_instances import STUB
from report import RESULTS, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastserve.tools.launcher import LaunchOptions, TritonLauncher

IN_PROCESS = """
import json, sys, time
started = time.perf_counter()
import psutil
from pathlib import Path
from fastserve.config import EngineConfig
from fastserve.engine.loader import load_engine
from fastserve.manifest import ModelManifest
imported = time.perf_counter()
folder = Path(sys.argv[1])
engine = load_engine(folder, ModelManifest.load(folder), EngineConfig(kv_cache_bytes=1 << 28), time.monotonic)
ready = time.perf_counter()
memory = psutil.Process().memory_full_info()
print(json.dumps([imported - started, ready - imported, memory.rss / 1e6, memory.pss / 1e6]))
"""
"""What the stub does, alone in a process: seconds of imports and of the load, MB of RSS and PSS."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Seconds and MB."""

    import_s: float
    load_s: float
    rss_mb: float
    pss_mb: float
    triton_ready_s: float
    triton_rss_mb: float
    triton_pss_mb: float


def newest_version(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def in_process(folder: Path) -> list[float]:
    command = [sys.executable, "-c", IN_PROCESS, str(newest_version(folder))]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in json.loads(run.stdout.splitlines()[-1])]


def through_triton(folder: Path) -> list[float]:
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / folder.name).symlink_to(folder.resolve())
        options = LaunchOptions(model_control_mode="explicit", ready_timeout_s=120.0)
        with TritonLauncher(Path(temporary), options) as launcher, httpx.Client(trust_env=False, timeout=300.0) as client:
            started = time.perf_counter()
            client.post(f"{launcher.http_url}/v2/repository/models/{folder.name}/load").raise_for_status()
            client.get(f"{launcher.http_url}/v2/models/{folder.name}/ready").raise_for_status()
            seconds = time.perf_counter() - started
            stubs = [child for child in psutil.Process(launcher.pid).children(recursive=True) if STUB in child.name()]
            memory = [stub.memory_full_info() for stub in stubs]
    return [seconds, sum(each.rss for each in memory) / 1e6, sum(each.pss for each in memory) / 1e6]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_FOLDER")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    rounds: dict[str, list[Figures]] = {}
    for folder in track(options.models * options.rounds, description="load"):
        rounds.setdefault(str(folder), []).append(Figures(*in_process(folder), *through_triton(folder)))
    table = Table(title="seconds and MB, medians of the warm rounds")
    headings = ("import", "load", "RSS", "PSS", "Triton: READY after", "RSS", "PSS")
    for heading in ("model", *headings):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    found = {}
    for name, figures in rounds.items():
        warm = figures[1:] or figures
        values = [statistics.median(dataclasses.astuple(each)[index] for each in warm) for index in range(len(headings))]
        found[name] = dict(zip((field.name for field in dataclasses.fields(Figures)), values, strict=True))
        shown = [f"{value:.2f}" if index in (0, 1, 4) else f"{value:.0f}" for index, value in enumerate(values)]
        table.add_row(Path(name).name, *shown)
    console = Console()
    console.print(table)
    write_json(found, options.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
