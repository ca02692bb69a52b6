"""The perplexity of a text-generation model on a plain text, with the model's own graph in this process and no server.

How the text is cut into windows: :mod:`fastserve.export.perplexity`. A server cannot be asked, because it does not give the
log-probabilities of a prompt.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from fastserve.config import GENERATION_TASK, EngineConfig, parse_config
from fastserve.errors import ToolError
from fastserve.manifest import ModelManifest
from fastserve.tools import console
from fastserve.tools.evaluation.data_file import read_text
from fastserve.tools.evaluation.display import SERVED, write_json
from fastserve.tools.evaluation.progress import progress_bar
from fastserve.tools.model_config import settings_of_version

SOURCE = "source"
DEFAULT_TOLERANCE = 1e-4
"""Of the perplexity, relative, in fp32: what another order of the same additions may change."""
_WITHOUT_MEANING: Mapping[str, Any] = {
    "base": None,
    "score_tolerance": None,
    "format": None,
    "columns": (1, -1),
    "text_column": None,
    "pair_column": None,
    "label_column": None,
    "no_header": False,
    "labels": (),
    "candidate_labels": (),
    "parameter": [],
}
"""Options of the other tasks, with their defaults."""


class LanguageModel(Protocol):
    """Scores a window (:class:`fastserve.export.perplexity.TextWindow`): an array of log-probabilities."""

    def score(self, window: Any) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """One model's. ``log_probabilities``: float64 array [num_scored], natural; ``seconds``: that they took."""

    log_probabilities: Any
    perplexity: float
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class PerplexityReport:
    """Everything that was found. ``source``: None when there was nothing to compare with."""

    model: str
    dataset: Path
    windows: int
    window_length: int
    served: Scores
    source: Scores | None
    tolerance: float

    @property
    def num_scored(self) -> int:
        return len(self.served.log_probabilities)

    @property
    def relative_difference(self) -> float:
        """Of served from source, as a share of the source's perplexity. NaN without numbers to compare."""
        assert self.source is not None
        return abs(self.served.perplexity - self.source.perplexity) / self.source.perplexity

    @property
    def worst_token_difference(self) -> float:
        """Largest distance of the two log-probabilities of one token: what a mean may hide."""
        assert self.source is not None
        return float(abs(self.served.log_probabilities - self.source.log_probabilities).max())

    @property
    def within_tolerance(self) -> bool:
        return self.source is None or self.relative_difference <= self.tolerance  # NaN is not

    def as_json(self) -> Mapping[str, Any]:
        document = {
            "model": self.model,
            "dataset": str(self.dataset),
            "task": GENERATION_TASK,
            "windows": self.windows,
            "window_length": self.window_length,
            "scored_tokens": self.num_scored,
            "seconds": round(self.served.seconds, 3),
            "perplexity": {SERVED: self.served.perplexity},
            "comparison": None,
        }
        if self.source is not None:
            document["perplexity"] = {SOURCE: self.source.perplexity, SERVED: self.served.perplexity}
            document["comparison"] = {
                "relative_difference": self.relative_difference,
                "worst_token_difference": self.worst_token_difference,
                "tolerance": self.tolerance,
                "within_tolerance": self.within_tolerance,
            }
        return document


def evaluate_language_model(arguments: argparse.Namespace, directory: Path, manifest: ModelManifest) -> int:
    """0; 1 when the served model is not its source. ``arguments``: of ``fastserve evaluate``; ``directory``: the version folder.

    Raises ToolError for options without a meaning here, a text that cannot be read or scored, missing packages; ManifestError
    for a folder that cannot be run.
    """
    if given := [name for name, usual in _WITHOUT_MEANING.items() if getattr(arguments, name) != usual]:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ToolError(f"{names}: of no use to a {GENERATION_TASK} model, whose perplexity on a plain text is measured")
    report = _measure(arguments, directory, manifest)
    _show(report, console.stdout())
    if arguments.json is not None:
        write_json(report.as_json(), arguments.json)
    return 0 if report.within_tolerance else 1


def served_cache_dtype(directory: Path) -> str:
    """The element type of the KV cache that the config.pbtxt beside a version folder asks for, the default without one.

    Raises ToolError for a file that is no configuration, ConfigError for one that the engine refuses."""
    return parse_config(EngineConfig, settings_of_version(directory)).kv_cache_dtype


def _measure(arguments: argparse.Namespace, directory: Path, manifest: ModelManifest) -> PerplexityReport:
    try:
        from fastserve.export import perplexity
    except ModuleNotFoundError as error:
        raise _not_installed(error, "perplexity runs the model", "cpu") from None
    text = read_text(arguments.dataset)
    served_model = perplexity.ServedLanguageModel(directory, manifest, kv_cache_dtype=served_cache_dtype(directory))
    length, token_ids = served_model.window_length, served_model.encode(text)
    windows = perplexity.cut_text(token_ids, length)[: arguments.limit]
    served = _score(served_model, windows, SERVED)
    source = None
    if arguments.compare is not None:
        del served_model  # two large models at once may be more than fits
        source_model = _load_source(arguments.compare)
        source_model.check(text, token_ids, max(len(window.token_ids) for window in windows))
        source = _score(source_model, windows, SOURCE)
    tolerance = DEFAULT_TOLERANCE if arguments.tolerance is None else arguments.tolerance
    return PerplexityReport(arguments.model, arguments.dataset, len(windows), length, served, source, tolerance)


def _load_source(directory: str) -> Any:
    try:
        from fastserve.export.source_perplexity import load_language_model
    except ModuleNotFoundError as error:
        raise _not_installed(error, "--compare runs the source model", "export") from None
    return load_language_model(directory)


def _not_installed(error: ModuleNotFoundError, what: str, extra: str) -> Exception:
    """``what`` needs the package that ``error`` says is missing, which ``extra`` brings."""
    if error.name is None or error.name.startswith("fastserve"):
        return error
    return ToolError(f"{what} with {error.name}, which is not installed: pip install 'triton-fastserve[{extra}]'")


def _score(model: LanguageModel, windows: Sequence[Any], name: str) -> Scores:
    import numpy as np

    from fastserve.export.perplexity import perplexity

    started = time.monotonic()
    parts = []
    with progress_bar(name, len(windows)) as advance:
        for window in windows:
            parts.append(model.score(window))
            advance()
    seconds = time.monotonic() - started
    log_probabilities = np.concatenate(parts)
    return Scores(log_probabilities, perplexity(log_probabilities), seconds)


def _show(report: PerplexityReport, out: Console) -> None:
    speed = report.num_scored / report.served.seconds if report.served.seconds else 0.0
    out.print(f"{report.model} on {report.dataset}: perplexity", style="bold")
    out.print(
        f"{report.num_scored} tokens scored in {report.windows} windows of up to {report.window_length} that overlap by half, "
        f"in {report.served.seconds:.1f} s ({speed:.0f} a second)"
    )
    table = Table("", box=None, padding=(0, 2, 0, 0))
    table.add_column("perplexity", justify="right")
    for name, scores in ((SOURCE, report.source), (SERVED, report.served)):
        if scores is not None:
            table.add_row(name, f"{scores.perplexity:.6g}")
    out.print(table)
    if report.source is None:
        return
    out.print(
        f"Relative difference {report.relative_difference:.2g} (tolerance {report.tolerance:g}); "
        f"largest difference of one token's log-probability {report.worst_token_difference:.2g}."
    )
    if report.within_tolerance:
        out.print("The served model is the source model, within the tolerance.", style="bold green")
    else:
        out.print("The served model is NOT the source model within the tolerance.", style="bold red")
