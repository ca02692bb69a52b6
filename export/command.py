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
from rich.table import Table
from rich.text import Text

from fastserve.errors import FastServeError
from fastserve.export.options import DTYPES, TASKS, ExportOptions, ExportResult, Stage

_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastserve export``."""
    parser.add_argument("source", metavar="SOURCE", help="a Hugging Face model folder, a .gguf file, or a hub id")
    parser.add_argument(
        "--task", default="text-generation", help=f"what the model is for: {', '.join(TASKS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("model_repository"), help="the model repository (default: %(default)s)"
    )
    parser.add_argument("--name", help="the model's name in Triton (default: taken from SOURCE)")
    parser.add_argument(
        "--dtype", default="fp32", help=f"type of weights and arithmetic: {', '.join(DTYPES)} (default: %(default)s)"
    )
    parser.add_argument("--version", type=int, default=1, dest="model_version", metavar="N", help="version folder (default: 1)")
    parser.add_argument("--force", action="store_true", help="replace the version if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Export and print what came of it. Returns the process's exit code; a deliberate error is one readable line."""
    console, errors = Console(), Console(stderr=True)
    try:
        options = ExportOptions(
            output=arguments.output,
            task=arguments.task,
            name=arguments.name,
            dtype=arguments.dtype,
            version=arguments.model_version,
            force=arguments.force,
        )
        with _signals_interrupt(), StageDisplay(console) as display:
            from fastserve.export.text_generation import export_model  # imports torch: seconds

            result = export_model(arguments.source, options, display.show)
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


def summary(result: ExportResult) -> Table:
    """What was exported, how well it was proven, and which files it is."""
    manifest, proof = result.manifest, result.manifest.proof
    cache = manifest.cache
    table = Table(title=f"{manifest.model.name} -> {result.directory}", show_header=False, title_justify="left")
    rows = {
        "model": f"{manifest.model.model_type}, {manifest.model.num_parameters:,} parameters, {manifest.model.dtype}",
        "attention": f"{len(cache.layers)} layers, {cache.layers[0].kv_num_heads} KV heads of {cache.layers[0].head_size}"
        if cache
        else "-",
        "vocabulary": f"{manifest.model.vocab_size:,} tokens",
        "longest context": f"{manifest.model.max_model_len:,} tokens",
        "chat template": "yes" if manifest.tokenizer and manifest.tokenizer.chat_template else "no",
        "proof": f"{proof['rows_compared']:.0f} positions, largest logit difference {proof['max_abs_logit_difference']:.2g} "
        f"(chunked {proof['max_abs_logit_difference_chunked']:.2g}, fp16 cache {proof['max_abs_logit_difference_kv_fp16']:.2g}), "
        f"logit scale {proof['logit_scale']:.2g}",
        "alone vs batched": _neighbours(proof["max_abs_difference_alone_batched"]),
        "greedy tokens": f"all equal, {proof['greedy_ties']:.0f} near-ties",
        "time": ", ".join(f"{stage.lower()} {seconds:.0f} s" for stage, seconds in result.seconds.items()),
    }
    for label, text in rows.items():
        table.add_row(label, text)
    for note in result.notes:
        table.add_row("note", Text(note))
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.bytes / 1e6:,.1f} MB")
    return table


def _neighbours(difference: float) -> str:
    return "bitwise equal" if difference == 0 else f"largest difference {difference:.2g}"
