"""``fastserve doctor``: what of this machine serving needs, what is missing, and the command that mends it; with a model,
whether that can be exported and what it takes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastserve.errors import ToolError
from fastserve.tools import console
from fastserve.tools.doctor_checks import Check, run_checks
from fastserve.tools.ports import port_number

if TYPE_CHECKING:
    from rich.table import Table

_EPILOG = """examples:
  fastserve doctor
  fastserve doctor --http-port 9000 --json
  fastserve doctor ./my-finetune                       before its export: is it supported, how much memory, how fast
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a Hugging Face folder, .gguf file or hub id to look at; without: this machine"
    )
    parser.add_argument("--task", help="of MODEL, as for `fastserve export` (default: as its architecture says)")
    parser.add_argument("--http-port", type=port_number, default=8000, metavar="PORT", help="check this port (default: 8000)")
    parser.add_argument("--grpc-port", type=port_number, default=8001, metavar="PORT", help="check this port (default: 8001)")
    parser.add_argument("--metrics-port", type=port_number, default=8002, metavar="PORT", help="check this port (default: 8002)")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """0 when serving is possible here, and the model that was named can be served; else 1."""
    if arguments.model is not None:
        from fastserve.tools.doctor_model import run_model

        return run_model(arguments.model, arguments.task, as_json=arguments.json)
    if arguments.task is not None:
        raise ToolError("--task is of a model: fastserve doctor MODEL --task TASK")
    checks = run_checks((arguments.http_port, arguments.grpc_port, arguments.metrics_port))
    broken = [check for check in checks if check.required and not check.ok]
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
        return 1 if broken else 0
    out = console.stdout()
    out.print(_table(checks))
    for check in checks:
        if not check.ok:
            out.print(f"{check.name}: {check.mend}")
    names = ", ".join(check.name for check in broken)
    out.print(
        f"Serving is not possible yet: {names}" if broken else "This machine can serve.",
        style="bold red" if broken else "bold green",
    )
    return 1 if broken else 0


def _table(checks: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in ("check", "", "found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        verdict = (
            Text("ok", "green") if check.ok else Text("missing", "bold red") if check.required else Text("optional", "yellow")
        )
        table.add_row(Text(check.name), verdict, Text(check.found))
    return table
