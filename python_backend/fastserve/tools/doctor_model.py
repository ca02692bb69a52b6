"""``fastserve doctor MODEL``: before an export, whether the model is supported, what memory it takes, how fast it may be here."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from fastserve.config import EngineConfig
from fastserve.errors import ToolError, UnsupportedModel
from fastserve.tools import console
from fastserve.tools.doctor_checks import available_memory
from fastserve.tools.doctor_machine import MachineRates, Prediction, measure_machine, predict

if TYPE_CHECKING:
    from rich.table import Table

    from fastserve.export.inspection import Inspection

EXTRAS = "pip install 'triton-fastserve[cpu,export]'"
_EXPORT_TIMES_WEIGHTS = 2.5
"""What an export takes at its peak, at most, in sizes of the fp32 weights."""
_GB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class ModelReport:
    """What the doctor says of a model, sizes in bytes. ``refusal``: the feature that is in the way; then the rest is unknown.
    ``kv_pool_bytes``: what the engine would take for its cache now, with the default settings."""

    model: str
    refusal: str | None
    inspection: Inspection | None = None
    kv_pool_bytes: int = 0
    free_bytes: int = 0
    rates: MachineRates | None = None
    prediction: Prediction | None = None

    def as_json(self) -> dict[str, Any]:
        return {"supported": self.refusal is None, **dataclasses.asdict(self)}

    @property
    def fits(self) -> bool:
        """Whether weights and a cache for one sequence of full length are in the memory that is free now."""
        seen = self.inspection
        return seen is not None and seen.weight_bytes + seen.kv_bytes_per_token * seen.max_length <= self.free_bytes


def examine(model: str, task: str | None) -> ModelReport:
    """Raises ModelNotFound, InvalidRequest, and :class:`ToolError` when what exports need is not installed."""
    try:
        from fastserve.export.inspection import inspect_model
    except ModuleNotFoundError as error:
        raise ToolError(f"{error.name} is not installed, and a model is looked at with what exports need: {EXTRAS}") from None
    try:
        inspection = inspect_model(model, task)
    except UnsupportedModel as error:
        return ModelReport(model, str(error))
    free, rates, defaults = available_memory(), measure_machine(), EngineConfig()
    wanted = inspection.kv_bytes_per_token * inspection.max_length * defaults.max_num_seqs
    pool = min(wanted, int(max(0, free - inspection.weight_bytes) * defaults.kv_cache_memory_fraction))
    prediction = predict(rates, inspection.matmul_elements, defaults.max_num_seqs)
    return ModelReport(model, None, inspection, pool, free, rates, prediction)


def run_model(model: str, task: str | None, *, as_json: bool) -> int:
    """0 when the model can be exported and served here, else 1."""
    report = examine(model, task)
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        show(report)
    return 0 if report.refusal is None and report.fits else 1


def show(report: ModelReport) -> None:
    out = console.stdout()
    if report.inspection is None:
        out.print(f"Not supported. {report.refusal}", style="bold red")
        return
    out.print(_table(rows(report)))
    for note in report.inspection.notes:
        out.print(f"note: {note}")
    if report.fits:
        task = report.inspection.task
        out.print("Nothing speaks against it. The export proves it against the source:", style="bold green")
        out.print(f"  fastserve export {report.model} --task {task}")
    else:
        out.print("Supported, but too large for the memory that is free here.", style="bold red")


def rows(report: ModelReport) -> dict[str, str]:
    """What is shown of a supported model, by heading."""
    seen, rates, said = report.inspection, report.rates, report.prediction
    assert seen is not None and rates is not None and said is not None
    shown = {
        "model": f"{seen.label}: {seen.model_type} for {seen.task}, {seen.num_parameters:,} parameters",
        "longest context" if seen.kv_bytes_per_token else "longest window": f"{seen.max_length:,} tokens",
        "weights": f"{_size(seen.weight_bytes)} in fp32, once more while it loads"
        + (
            f"; {_size(seen.int8_weight_bytes)} with --dtype int8, {_size(seen.int4_weight_bytes)} or more with int4"
            if seen.kv_bytes_per_token
            else ""
        ),
        "export": f"up to {_size(int(seen.weight_bytes * _EXPORT_TIMES_WEIGHTS))} at its peak",
    }
    if seen.kv_bytes_per_token:
        one = seen.kv_bytes_per_token * seen.max_length
        shown["KV cache"] = (
            f"{seen.kv_bytes_per_token:,} bytes a token, {_size(one)} for one sequence of full length; the engine would take "
            f"{_size(report.kv_pool_bytes)} now, room for {report.kv_pool_bytes // seen.kv_bytes_per_token:,} tokens"
        )
    shown["free memory"] = _size(report.free_bytes)
    shown["this machine"] = (
        f"multiplies at {rates.flops / 1e9:.0f} GFLOP/s, reads {rates.read_bytes / 1e9:.1f} GB/s (measured now)"
    )
    if seen.kv_bytes_per_token:
        shown["at most"] = (
            f"{_rate(said.alone)} tokens/s for one answer, {_rate(said.batch)} for {said.batch_size} answers together, "
            f"{_rate(said.prompt)} of prompts"
        )
    else:
        shown["at most"] = f"{_rate(said.prompt)} tokens/s"
    shown["at most"] += "; attention and the rest of the work come on top"
    return shown


def _table(shown: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    for heading, text in shown.items():
        table.add_row(Text(heading, "bold"), Text(text))
    return table


def _size(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB // 10 else f"{size / (1 << 20):.1f} MB"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
