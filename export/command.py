"""``fastserve export``: the command line of this package. Heavy imports wait until :func:`run`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as ProgressDisplay
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fastserve.errors import FastServeError
from fastserve.export.options import (
    AGGREGATION_STRATEGIES,
    DEVICES,
    DTYPES,
    MAX_PERPLEXITY_RISE,
    POOLINGS,
    TASKS,
    ExportOptions,
    Stage,
)
from fastserve.export.summary import summary
from fastserve.manifest import CPU, CUDA

_INTERRUPTED = 130
_QUANTIZED = f"--dtype {' or '.join(MAX_PERPLEXITY_RISE)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastserve export``."""
    parser.add_argument("source", metavar="SOURCE", help="a Hugging Face model folder, a .gguf or .onnx file, or a hub id")
    parser.add_argument(
        "--task", default="text-generation", help=f"what the model is for: {', '.join(TASKS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("model_repository"), help="the model repository (default: %(default)s)"
    )
    parser.add_argument("--name", help="the model's name in Triton (default: taken from SOURCE)")
    parser.add_argument("--dtype", help=f"type of weights and arithmetic: {', '.join(DTYPES)} (default: fp32, for cuda fp16)")
    parser.add_argument("--version", type=int, default=1, dest="model_version", metavar="N", help="version folder (default: 1)")
    parser.add_argument("--force", action="store_true", help="replace the version if it exists")
    group = parser.add_argument_group("text generation")
    group.add_argument(
        "--max-model-len", type=int, metavar="N", help="longest prompt and answer in tokens (default: as the source allows)"
    )
    group.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter (LoRA, ...) to merge into the weights")
    group.add_argument(
        "--device", default=CPU, help=f"what the graph is for: {', '.join(DEVICES)} (default: %(default)s); cuda needs its extra"
    )
    group.add_argument(
        "--keep-fp32",
        nargs="+",
        metavar="PART",
        help=f"with {_QUANTIZED}: products stay fp32 whose module's name has one of these parts (lm_head, layers.0., down_proj)",
    )
    group.add_argument(
        "--max-perplexity-rise",
        type=float,
        metavar="PERCENT",
        help=f"with {_QUANTIZED}: what costs most for its size gets more bits until no more is to be expected (default: "
        f"{', '.join(f'{rise:g} for {dtype}' for dtype, rise in MAX_PERPLEXITY_RISE.items())})",
    )
    group.add_argument("--quality-text", type=Path, metavar="FILE", help=f"with {_QUANTIZED}: the text its loss is measured on")
    _add_encoder_arguments(parser.add_argument_group("encoders", "Left out, they are as the source says."))


def _add_encoder_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-length", type=int, metavar="N", help="longest window in tokens, special tokens included; longer texts are cut up"
    )
    group.add_argument("--stride", type=int, metavar="N", help="tokens that two neighbouring windows of a text share")
    group.add_argument("--pooling", help=f"feature-extraction: how embeddings are made, {' or '.join(POOLINGS)}")
    group.add_argument(
        "--aggregation-strategy",
        metavar="STRATEGY",
        help=f"token-classification: how tokens become entities, {', '.join(AGGREGATION_STRATEGIES)} (default: simple)",
    )
    group.add_argument(
        "--markers",
        nargs=4,
        metavar="TOKEN",
        help="relation-extraction: the tokens before and after the head, before and after the tail",
    )
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="of an .onnx file: its labels in their order, one a line, or as JSON"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export and print what came of it. Returns the process's exit code; a deliberate error is one readable line."""
    console, errors = Console(), Console(stderr=True)
    try:
        options = ExportOptions(
            output=arguments.output,
            task=arguments.task,
            name=arguments.name,
            dtype=arguments.dtype or ("fp16" if arguments.device == CUDA else "fp32"),
            version=arguments.model_version,
            force=arguments.force,
            max_model_len=arguments.max_model_len,
            adapter=arguments.adapter,
            device=arguments.device,
            keep_fp32=tuple(arguments.keep_fp32) if arguments.keep_fp32 else None,
            max_perplexity_rise=arguments.max_perplexity_rise,
            quality_text=arguments.quality_text,
            max_length=arguments.max_length,
            stride=arguments.stride,
            pooling=arguments.pooling,
            aggregation_strategy=arguments.aggregation_strategy,
            markers=tuple(arguments.markers) if arguments.markers else None,
            labels=arguments.labels,
        )
        with _signals_interrupt(), StageDisplay(console) as display:
            from fastserve.export.exporters import export_any  # imports torch: seconds

            result = export_any(arguments.source, options, display.show)
    except FastServeError as error:
        errors.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted; nothing was written")
        return _INTERRUPTED
    console.print(summary(result))
    console.print(
        f"Serve it: fastserve serve --model-repository {arguments.output}", markup=False, highlight=False, soft_wrap=True
    )
    return 0


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A polite request to end (SIGTERM, a closed terminal) becomes a KeyboardInterrupt, so that the export cleans up behind
    itself; repeating it does not cut the cleaning short. Only the main thread may set handlers; elsewhere nothing changes."""

    def interrupt(number: int, frame: object) -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)
        raise KeyboardInterrupt

    kinds = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    previous = {kind: signal.signal(kind, interrupt) for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


class StageDisplay:
    """A line per stage with a spinner and the elapsed time; plain when the output is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), TimeElapsedColumn())
        self._display = ProgressDisplay(*columns, console=console)
        self._current: TaskID | None = None

    def __enter__(self) -> StageDisplay:
        self._display.start()
        self._begin("import torch and transformers")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._finish()
        self._display.stop()

    def show(self, stage: Stage) -> None:
        """A :data:`~fastserve.export.options.Progress`."""
        self._finish()
        self._begin(stage.value)

    def _begin(self, text: str) -> None:
        self._current = self._display.add_task(text, total=1)

    def _finish(self) -> None:
        if self._current is not None:
            self._display.update(self._current, completed=1)
