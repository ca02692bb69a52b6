"""``fastserve serve``: a real Triton on this machine, serving a model repository until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
from pathlib import Path
from typing import Any, NoReturn

from fastserve.config import GENERATION_TASK
from fastserve.errors import ToolError
from fastserve.tools import console
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.tools.ports import port_number
from fastserve.tools.request_arguments import DEFAULT_REPOSITORY

_EPILOG = """examples:
  fastserve serve
  fastserve serve --model-repository ./models --http-port 9000 --grpc-port 9001
  fastserve serve --model-control-mode poll            pick up models that are added or changed
  fastserve serve -- --rate-limit=off                  everything after -- goes to tritonserver

When a model's process dies (no memory, a crash), Triton would let its requests wait for ever: the server is ended instead,
with exit code 1, in every model control mode.
Only this machine can connect unless --host says otherwise (0.0.0.0: every network this machine is in).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--model-repository", type=Path, default=DEFAULT_REPOSITORY, help=f"default: ./{DEFAULT_REPOSITORY}")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=port_number, default=port, metavar="PORT", help=f"default: {port}; 0: any free one"
        )
    parser.add_argument(
        "--model-control-mode", choices=("none", "poll", "explicit"), default="none", help="as in Triton (default: none)"
    )
    parser.add_argument(
        "--load-model", action="append", default=[], metavar="NAME", help="load NAME at the start, mode explicit only"
    )
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append Triton's log here; at 8 MB it becomes FILE.1")
    parser.add_argument(
        "--ready-timeout", type=float, default=600.0, metavar="SECONDS", help="give up when not ready (default: 600)"
    )
    parser.add_argument("--verbose", action="store_true", help="show Triton's log while it runs")
    parser.add_argument("triton_arguments", nargs="*", metavar="-- ARG", help="further arguments for tritonserver")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM (exit code 0). Raises :class:`ToolError` when Triton cannot start or ends by itself."""
    options = LaunchOptions(
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        model_control_mode=arguments.model_control_mode,
        load_models=tuple(arguments.load_model),
        extra_args=tuple(arguments.triton_arguments),
        ready_timeout_s=arguments.ready_timeout,
        log_file=arguments.log_file,
        echo_log=arguments.verbose,
    )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    out = console.stdout()
    try:
        out.print(f"Starting Triton on {arguments.model_repository} ...")
        with TritonLauncher(arguments.model_repository, options) as triton:
            _introduce(out, triton)
            triton.wait()
            death, tail = triton.death(), triton.log_tail(15)
    except KeyboardInterrupt:
        out.print("Stopped.")
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    if death is not None:
        raise ToolError(f"{death}; Triton would not have noticed, so it was ended. The end of its log:\n" + "\n".join(tail))
    raise ToolError("Triton ended by itself; the end of its log:\n" + "\n".join(tail))


def _introduce(out: Any, triton: TritonLauncher) -> None:
    ready = sorted({model.name for model in triton.models() if model.ready})
    out.print(f"Ready: {', '.join(ready)}" if ready else "Ready, with no model loaded (`fastserve export` makes one).")
    out.print(f"  HTTP     {triton.http_url}\n  gRPC     {triton.grpc_url}\n  metrics  {triton.metrics_url}")
    if ready:
        _suggest(out, triton, ready[0])
    out.print("Ctrl-C stops it.")


def _suggest(out: Any, triton: TritonLauncher, model: str) -> None:
    url = "" if triton.grpc_url.endswith(":8001") else f" --url {triton.grpc_url}"
    if triton.task(model) != GENERATION_TASK:
        out.print(f"Try:\n  fastserve infer {model} TEXT{url}\n  fastserve evaluate {model} DATASET{url}")
        return
    body = json.dumps({"text_input": "The capital of France is", "max_tokens": 16})
    out.print(f"Try:\n  curl -s {triton.http_url}/v2/models/{model}/generate -d {shlex.quote(body)}")
    out.print(f"  fastserve chat {model}{url}")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
