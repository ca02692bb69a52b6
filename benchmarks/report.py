"""What the benchmarks of the kernels have in common: their arguments, what they say about the machine, and their JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console

SEED = 0
RESULTS = Path(__file__).parent / "results"


def kernel_arguments(description: str | None, results: str, *, repeats: int) -> argparse.ArgumentParser:
    """``results``: name of the file that is written unless another is named."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--output", type=Path, default=RESULTS / results)
    return parser


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on beside the code. To be asked for before anything is measured: it tells the load."""
    return {
        "processor": processor(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "seed": SEED,
        "load_average_before": os.getloadavg()[0],
        "versions": {"onnxruntime": ort.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_json(found: Any, file: Path, console: Console) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {file}")
