"""What the nodes of a graph take, from the profile that ONNX Runtime writes."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LINEAR, ATTENTION, ELEMENTWISE, HEAD, OTHER = "linear", "attention", "norm, elementwise", "head", "other"
KINDS = (LINEAR, ATTENTION, ELEMENTWISE, HEAD, OTHER)
RUNTIME = "between nodes"
"""Of a run: what ONNX Runtime needs beside its nodes."""

_MOVES_DATA = frozenset(
    ("Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity")
    + ("Reshape", "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)


@dataclasses.dataclass(frozen=True, slots=True)
class RunTimes:
    """One run: seconds by kind of node, with :data:`RUNTIME` they add up to ``total``; and by operator."""

    total: float
    kinds: dict[str, float]
    operators: dict[str, float]


def read_runs(file: Path, vocab_size: int) -> list[RunTimes]:
    """The runs in a profile, in order. ``vocab_size`` tells the head from other matrix products.

    Times are of the thread that walks through the graph; threads that help it inside a node add nothing.
    """
    events = json.loads(file.read_text(encoding="utf-8"))
    runs = sorted((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])
    nodes = sorted((event for event in events if event.get("name", "").endswith("_kernel_time")), key=lambda event: event["ts"])
    found, place = [], 0
    for run in runs:
        end, inside = run["ts"] + run["dur"], []
        while place < len(nodes) and nodes[place]["ts"] < end:
            if nodes[place]["ts"] >= run["ts"]:
                inside.append(nodes[place])
            place += 1
        found.append(_sum_up(run["dur"] / 1e6, inside, vocab_size))
    return found


def _sum_up(total: float, nodes: Sequence[Any], vocab_size: int) -> RunTimes:
    kinds, operators = dict.fromkeys(KINDS, 0.0), defaultdict[str, float](float)
    for node in nodes:
        seconds, operator = node["dur"] / 1e6, node["args"]["op_name"]
        kinds[_kind(operator, node["args"], vocab_size)] += seconds
        operators[operator] += seconds
    return RunTimes(total, {**kinds, RUNTIME: total - sum(kinds.values())}, dict(operators))


def _kind(operator: str, node: Any, vocab_size: int) -> str:
    if "MatMul" in operator or "Gemm" in operator:
        shapes = [shape for output in node.get("output_type_shape", ()) for shape in output.values()]
        return HEAD if any(shape[-1:] == [vocab_size] for shape in shapes) else LINEAR
    if "Attention" in operator:
        return ATTENTION
    return OTHER if operator in _MOVES_DATA else ELEMENTWISE


def sum_runs(runs: Sequence[RunTimes]) -> RunTimes:
    """Of all together; operators from the slowest on."""
    operators = _sum(run.operators for run in runs)
    ordered = dict(sorted(operators.items(), key=lambda item: -item[1]))
    return RunTimes(sum(run.total for run in runs), _sum(run.kinds for run in runs), ordered)


def _sum(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    total = defaultdict[str, float](float)
    for part in parts:
        for name, seconds in part.items():
            total[name] += seconds
    return dict(total)
