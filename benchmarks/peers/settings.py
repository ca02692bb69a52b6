"""Settings of config.pbtxt against each other, through a real Triton with a streaming client, in turns (A B A B).

python benchmarks/peers/settings.py spinning=on spinning=off
python benchmarks/peers/settings.py max_num_seqs=16 max_num_seqs=32,max_batched_tokens=512 --rounds 3
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
from pathlib import Path

import fastserve_peer
import fastserve_triton_peer
import numpy as np
import peer
import psutil
import workload
from rich.console import Console
from rich.table import Table
from rows import HERE

from fastserve.tools.launcher import TritonLauncher

COLUMNS = ("tokens/s", "JCT mean", "TTFT mean", "TTFT P99", "processor s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="KEY=VALUE, or several of them split by commas")
    parser.add_argument("--model", type=Path, default=Path(".demo/peers/models/smollm2/fastserve-fp32"))
    parser.add_argument("--workload", type=Path, default=HERE.parent / "results" / "peers" / "smollm2" / "workload.at_once.json")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    items = workload.load(arguments.workload)[: arguments.requests]
    console.print(workload.describe(items))
    runs: dict[str, list[list[float]]] = {setting: [] for setting in arguments.settings}
    for number in range(arguments.rounds):
        for setting in arguments.settings:
            runs[setting].append(_measure(arguments.model, setting, items))
            console.print(f"round {number + 1}, {setting}: {runs[setting][-1][0]:.1f} tokens/s")
    table = Table(title=f"Medians of {arguments.rounds} (seconds)")
    for column in ("setting", *COLUMNS):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for setting, found in runs.items():
        table.add_row(setting, *(f"{statistics.median(column):.2f}" for column in zip(*found, strict=True)))
    console.print(table)


def _measure(model: Path, setting: str, items: list[workload.Item]) -> list[float]:
    """One figure for each of :data:`COLUMNS`, in a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        target = repository / fastserve_peer.NAME
        shutil.copytree(model / fastserve_peer.NAME, target, copy_function=_link)
        _configure(target / "config.pbtxt", setting)
        with TritonLauncher(repository) as triton:
            asyncio.run(fastserve_triton_peer.serve(triton.grpc_url, peer.warm_up_items(items)))
            before = _processor_seconds(triton.pid)
            record = asyncio.run(fastserve_triton_peer.serve(triton.grpc_url, items)).as_json()["requests"]
            used = _processor_seconds(triton.pid) - before
    first = [request["first"] for request in record]
    last = [request["last"] for request in record]
    tokens = sum(item.output_tokens for item in items)
    return [tokens / max(last), statistics.fmean(last), statistics.fmean(first), float(np.percentile(first, 99)), used]


def _link(source: str, target: str) -> None:
    """Weights are not copied; the configuration is, because it is written to."""
    if source.endswith(".pbtxt"):
        shutil.copy(source, target)
    else:
        Path(target).hardlink_to(source)


def _configure(file: Path, setting: str) -> None:
    lines = [file.read_text(encoding="utf-8")]
    for pair in setting.split(","):
        key, _, value = pair.partition("=")
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n')
    file.write_text("\n".join(lines), encoding="utf-8")


def _processor_seconds(pid: int | None) -> float:
    server = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in (server, *server.children(recursive=True)))


if __name__ == "__main__":
    main()
