"""How long a model takes until it answers, and what memory it then has: through Triton from the load request to READY and from
there to the first token of the first request, in process from the files to a warm engine and a tokenizer.

    python benchmarks/bench_startup.py MODEL_FOLDER... [--rounds N]

MODEL_FOLDER: a model's folder in a repository, with its config.pbtxt. Rounds alternate between the models; the first, which may
read the disk, counts for none of the medians. RSS counts every page a process maps, PSS a page of n processes as 1/n of one.
"Completing": Triton asks the backend to complete config.pbtxt first, as it does unless --disable-auto-complete-config is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
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

from fastserve.tools.complete_configs import DO_NOT_COMPLETE
from fastserve.tools.launcher import LaunchOptions, TritonLauncher

IN_PROCESS = """
import json, sys, time
started = time.perf_counter()
import psutil
from pathlib import Path
from fastserve.config import EngineConfig
from fastserve.engine.loader import load_engine, load_text_generation
from fastserve.manifest import ModelManifest
imported = time.perf_counter()
folder, config = Path(sys.argv[1]), EngineConfig(kv_cache_bytes=1 << 28, share_weights=sys.argv[2])
manifest = ModelManifest.load(folder)
engine = load_engine(folder, manifest, config, time.monotonic)
loaded = time.perf_counter()
task = load_text_generation(folder, manifest, config)
ready = time.perf_counter()
memory = psutil.Process().memory_full_info()
rollup = Path("/proc/self/smaps_rollup").read_text().split()
huge = int(rollup[rollup.index("AnonHugePages:") + 1]) * 1024
megabytes = [size / 1e6 for size in (memory.rss, memory.pss, huge)]
print(json.dumps([imported - started, loaded - imported, ready - loaded, *megabytes]))
"""
"""What the stub does, alone in a process: seconds of imports, engine and tokenizer, MB of RSS, of PSS, and in huge pages."""
QUESTION = {"text_input": "The capital of France is", "max_tokens": 1, "temperature": 0}


@dataclasses.dataclass(frozen=True)
class Figures:
    """Seconds and MB."""

    import_s: float
    engine_s: float
    tokenizer_s: float
    rss_mb: float
    pss_mb: float
    huge_pages_mb: float
    """Of the KV pool: memory comes 2 MB at a time to each of its arrays, two a layer."""
    shared_engine_s: float
    """With ``share_weights`` on: ONNX Runtime's optimised graph and weights in the order of its kernels are read as they are."""
    shared_rss_mb: float
    shared_pss_mb: float
    completing_ready_s: float
    ready_s: float
    first_token_s: float
    """Of a request that is sent when the model is READY."""
    second_request_s: float
    triton_rss_mb: float
    triton_pss_mb: float


ROWS = (
    ("in process: imports, s", "import_s"),
    ("engine, warm, s", "engine_s"),
    ("tokenizer, s", "tokenizer_s"),
    ("RSS, MB", "rss_mb"),
    ("PSS, MB", "pss_mb"),
    ("in huge pages, MB", "huge_pages_mb"),
    ("share_weights on: engine, warm, s", "shared_engine_s"),
    ("RSS, MB", "shared_rss_mb"),
    ("PSS, MB", "shared_pss_mb"),
    ("through Triton, completing: READY after s", "completing_ready_s"),
    ("not completing: READY after s", "ready_s"),
    ("first token after another s", "first_token_s"),
    ("that of the second request after s", "second_request_s"),
    ("RSS, MB", "triton_rss_mb"),
    ("PSS, MB", "triton_pss_mb"),
)


def newest_version(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def in_process(folder: Path, share_weights: str) -> list[float]:
    command = [sys.executable, "-c", IN_PROCESS, str(newest_version(folder)), share_weights]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in json.loads(run.stdout.splitlines()[-1])]


def through_triton(folder: Path, *triton_arguments: str) -> list[float]:
    """Seconds to READY, of the first and of the second request; MB of RSS and PSS of the model's process."""
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / folder.name).symlink_to(folder.resolve())
        options = LaunchOptions(model_control_mode="explicit", ready_timeout_s=120.0, extra_args=triton_arguments)
        with TritonLauncher(Path(temporary), options) as launcher, httpx.Client(trust_env=False, timeout=300.0) as client:
            model = f"{launcher.http_url}/v2/models/{folder.name}"
            times = [time.perf_counter()]
            client.post(f"{launcher.http_url}/v2/repository/models/{folder.name}/load").raise_for_status()
            client.get(f"{model}/ready").raise_for_status()
            times.append(time.perf_counter())
            for _ in range(2):
                client.post(f"{model}/generate", json=QUESTION).raise_for_status()
                times.append(time.perf_counter())
            stubs = [child for child in psutil.Process(launcher.pid).children(recursive=True) if STUB in child.name()]
            memory = [stub.memory_full_info() for stub in stubs]
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return [*seconds, sum(each.rss for each in memory) / 1e6, sum(each.pss for each in memory) / 1e6]


def measure(folder: Path) -> Figures:
    _, shared_engine_s, _, shared_rss_mb, shared_pss_mb, _ = in_process(folder, "on")
    completing_ready_s, *_ = through_triton(folder)
    found = [*in_process(folder, "auto"), shared_engine_s, shared_rss_mb, shared_pss_mb, completing_ready_s]
    return Figures(*found, *through_triton(folder, DO_NOT_COMPLETE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_FOLDER")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    rounds: dict[str, list[Figures]] = {}
    for folder in track(options.models * options.rounds, description="load"):
        rounds.setdefault(str(folder), []).append(measure(folder))
    found = {}
    for name, figures in rounds.items():
        warm = [dataclasses.asdict(each) for each in figures[1:] or figures]
        found[name] = {field: statistics.median(each[field] for each in warm) for field in warm[0]}
    table = Table("medians of the warm rounds", *(Path(name).name for name in found))
    for label, field in ROWS:
        table.add_row(label, *(f"{values[field]:.{3 if field.endswith('_s') else 0}f}" for values in found.values()))
    console = Console()
    console.print(table)
    write_json(found, options.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
