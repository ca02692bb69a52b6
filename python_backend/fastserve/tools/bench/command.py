"""``fastserve bench``: its subcommands. Their modules import nothing heavy before they run."""

from __future__ import annotations

import argparse
import importlib

BENCHMARKS = {
    "serve": ("fastserve.tools.bench.serve", "load on a model of a running server: latencies and throughput"),
    "step": ("fastserve.profiler.command", "the engine on an exported model, in process: where its iterations go"),
    "simulate": ("fastserve.simulator.command", "replay a trace through the real scheduler, with a model of what steps cost"),
}
"""Name -> (module, help). The module offers ``add_arguments(parser)`` and ``run(arguments) -> exit code``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="benchmark", title="benchmarks", required=True)
    for name, (module_name, text) in BENCHMARKS.items():
        child = benchmarks.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        module = importlib.import_module(module_name)
        module.add_arguments(child)
        child.set_defaults(run_benchmark=module.run)


def run(arguments: argparse.Namespace) -> int:
    return int(arguments.run_benchmark(arguments))
