"""``make demo``: export a real model, start a real Triton, and stream answers to several people at once."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastserve.errors import FastServeError
from fastserve.tools import console
from fastserve.tools.answer import Answer, generate
from fastserve.tools.client import GenerateClient, GenerateRequest, connect
from fastserve.tools.demo_model import DemoModel, prepare
from fastserve.tools.launcher import TritonLauncher

_QUESTIONS = (
    "What is the capital of France?",
    "Explain photosynthesis in two sentences.",
    "Write a haiku about the sea.",
    "List three things to pack for a hike.",
    "Why is the sky blue?",
    "Give me a name for a friendly robot and say why.",
)
_BEGINNINGS = (
    "The capital of France is",
    "Photosynthesis is the process by which",
    "Once upon a time, by the sea,",
    "The three most important things to pack for a hike are",
    "The sky is blue because",
    "The friendly robot's name was",
)
_MAX_TOKENS = 64
_REFRESHES_PER_SECOND = 8
_TAIL_CHARACTERS = 60


class DemoRequest:
    """One prompt over one protocol. Written by its own thread, read by the display."""

    def __init__(self, prompt: str, protocol: str) -> None:
        self.prompt = prompt
        self.protocol = protocol
        self.text = ""
        self.answer: Answer | None = None
        self.error: str | None = None
        self.may_be_empty = False
        """Some models end some prompts at once; the demo's own must not."""

    def run(self, client: GenerateClient, model: DemoModel) -> None:
        """Never raises a deliberate error: it becomes this request's :attr:`error`."""
        self.may_be_empty = not model.packaged
        request = GenerateRequest(
            model.name,
            text=None if model.chat else self.prompt,
            messages=[{"role": "user", "content": self.prompt}] if model.chat else None,
            parameters={"max_tokens": _MAX_TOKENS, "temperature": 0},
        )
        try:
            self.answer = generate(client, request, self._show)
        except FastServeError as error:
            self.error = str(error)

    def _show(self, text: str) -> None:
        self.text += text

    @property
    def failure(self) -> str | None:
        """Why this request is not a success, once it has ended."""
        if self.error is not None:
            return self.error
        return None if self.text.strip() or self.note is not None else "the answer is empty"

    @property
    def note(self) -> str | None:
        """What is odd about this request's answer, but no failure."""
        ended = self.may_be_empty and not self.text.strip() and self.answer is not None and self.answer.finish_reason == "stop"
        return "the model ended its answer at once" if ended else None


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every request got an answer."""
    parser = argparse.ArgumentParser(prog="python -m fastserve.tools.demo", description=__doc__)
    parser.add_argument("--model", help="a model folder, a .gguf file or a hub id (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where models are kept (default: .demo)")
    parsed = parser.parse_args(arguments)
    console.show_any_text()
    out = console.stdout()
    try:
        model = prepare(parsed.model or None, parsed.directory)
        out.print(f"Starting Triton with {model.name} ...")
        started = time.monotonic()
        with TritonLauncher(model.repository) as triton:
            out.print(f"Ready after {time.monotonic() - started:.1f} s: {triton.http_url} (HTTP), {triton.grpc_url} (gRPC)\n")
            requests, seconds = ask(triton, model, out)
        return report(requests, seconds, out)
    except FastServeError as error:
        console.complain(str(error))
        return 1
    except KeyboardInterrupt:
        console.complain("interrupted")
        return 130


def ask(triton: TritonLauncher, model: DemoModel, out: Console) -> tuple[list[DemoRequest], float]:
    """All prompts at once, half of them over each protocol; the requests and the seconds they took together."""
    prompts = _QUESTIONS if model.chat else _BEGINNINGS
    requests = [DemoRequest(prompt, ("gRPC", "HTTP")[index % 2]) for index, prompt in enumerate(prompts)]
    started = time.monotonic()
    with (
        connect(triton.grpc_url) as grpc,
        connect(triton.http_url) as http,
        Live(get_renderable=lambda: progress(requests), console=out, refresh_per_second=_REFRESHES_PER_SECOND, transient=True),
    ):
        clients = {"gRPC": grpc, "HTTP": http}
        interrupted = threading.Event()

        def work(request: DemoRequest) -> None:
            try:
                request.run(clients[request.protocol], model)
            except Exception:
                if not interrupted.is_set():  # else: what happens to a request whose client was closed
                    raise

        threads = [threading.Thread(target=work, args=(request,), daemon=True) for request in requests]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:  # the threads are daemons: it does not wait for answers, closing the clients withdraws them
            interrupted.set()
            raise
    return requests, time.monotonic() - started


def progress(requests: Sequence[DemoRequest]) -> Table:
    """The ends of all answers as they are now."""
    table = Table(box=None, show_header=False)
    for request in requests:
        tail = " ".join(request.text.split())[-_TAIL_CHARACTERS:]
        table.add_row(Text(request.protocol, "cyan"), Text(request.prompt, "bold"), Text(request.error or tail))
    return table


def report(requests: Sequence[DemoRequest], seconds: float, out: Console) -> int:
    """Print every answer with its times, then the total; the demo's exit code."""
    tokens = 0
    for request in requests:
        out.print(f"[{request.protocol}] {request.prompt}", style="bold")
        if request.text:
            out.print(request.text.strip())
        if request.answer is not None:
            tokens += request.answer.num_output_tokens
            out.print(request.answer.speed(), style="dim")
        if request.failure is not None:
            out.print(f"failed: {request.failure}", style="bold red")
        if request.note is not None:
            out.print(f"note: {request.note}", style="yellow")
        out.print()
    out.print(f"{len(requests)} requests at once: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s in total")
    return 1 if any(request.failure for request in requests) else 0


if __name__ == "__main__":
    sys.exit(main())
