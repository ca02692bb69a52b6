"""A load as a person watches it and reads it afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastserve.tools import console
from fastserve.tools.bench.load import Seen
from fastserve.tools.bench.samples import SHARES, Sample, Summary

if TYPE_CHECKING:
    from rich.table import Table

_MEASURES = {
    "time_to_first_token": "time to first token, ms",
    "inter_token": "between tokens, ms",
    "normalized": "normalised latency, ms/token",
    "completion": "completion, ms",
}
_SHOWN_FAILURES = 3


@contextlib.contextmanager
def watched(total: int) -> Iterator[Seen]:
    """A bar on stderr, gone afterwards, with the tokens and failures so far."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    tokens = failures = 0
    with Progress(*columns, console=console.stderr(), transient=True) as progress:
        bar = progress.add_task("", total=total)

        def see(sample: Sample) -> None:
            nonlocal tokens, failures
            tokens += sample.output_tokens
            failures += sample.error is not None
            progress.update(bar, advance=1, description=f"{tokens:,} tokens, {failures} failed")

        yield see


def show(summary: Summary, samples: Sequence[Sample]) -> None:
    out = console.stdout()
    out.print(_table(summary))
    out.print(f"{summary.succeeded} of {summary.requests} requests in {summary.seconds:.1f} s: {_rates(summary)}")
    failed = [sample for sample in samples if sample.error is not None]
    if failed:
        counts = ", ".join(f"{count} {status}" for status, count in summary.failures.items())
        out.print(f"{len(failed)} failed: {counts}", style="bold red")
        for message in list(dict.fromkeys(sample.message for sample in failed))[:_SHOWN_FAILURES]:
            out.print(f"  {message}")


def _rates(summary: Summary) -> str:
    rates = f"{summary.requests_per_second:.2f} requests/s"
    return f"{rates}, {summary.tokens_per_second:.1f} output tokens/s" if summary.output_tokens else rates


def _table(summary: Summary) -> Table:
    from rich.table import Table

    table = Table(box=None)
    for heading in ("", "mean", *(f"p{share}" for share in SHARES)):
        table.add_column(heading, justify="right" if heading else "left")
    for name, heading in _MEASURES.items():
        if (found := summary.distributions.get(name)) is not None:
            table.add_row(heading, *(f"{value * 1e3:,.1f}" for value in (found.mean, *found.percentiles.values())))
    return table
