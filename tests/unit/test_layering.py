"""Folder = layer: imports go one way. Checked on the syntax trees."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, EXPORT = ROOT / "python_backend" / "fastserve", ROOT / "export"
TRITON_MODULE = "triton_python_backend_utils"
TRITON_EDGE = {"fastserve.triton.backend", "fastserve.triton.channel", "fastserve.triton.metrics"}
IMPURE = {
    "asyncio",
    "concurrent",
    "datetime",
    "multiprocessing",
    "queue",
    "random",
    "secrets",
    "socket",
    "threading",
    "time",
    "uuid",
}
"""Clocks, randomness and threads of the standard library: not for core."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the modules of one room may import. ``rooms`` and single modules by name; ``lazily``: inside functions only."""

    rooms: frozenset[str]
    packages: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    lazily: frozenset[str] = frozenset()


def rule(rooms: str, packages: str = "", **more: set[str]) -> Rule:
    names = {name: frozenset(values) for name, values in more.items()}
    return Rule(frozenset(("ground " + rooms).split()), frozenset(packages.split()), **names)


RULES = {
    "ground": rule("", lazily={"fastserve.server"}),
    "functions": rule("functions"),
    "core": rule("core", forbidden=IMPURE),
    "worker": rule("core worker", "numpy onnxruntime"),
    "text": rule("text", "tokenizers jinja2 llguidance"),
    "tasks": rule("core text tasks", "numpy"),
    "simulator": rule("core simulator", "rich matplotlib", modules={"fastserve.tools.console"}),
    "profiler": rule(
        "core engine profiler",
        "rich",
        modules={f"fastserve.tools.{name}" for name in ("console", "bench.lengths", "model_config", "request_arguments")},
    ),
    "engine": rule("core worker text tasks engine", "numpy"),
    "triton": rule("core worker text tasks engine functions triton", f"numpy {TRITON_MODULE}"),
    "tools": rule(
        "tools",
        "numpy rich tritonclient google httpx grpc scipy seqeval sklearn",
        lazily={
            *(
                f"fastserve.export.{name}"
                for name in ("command", "inspection", "options", "perplexity", "source_perplexity", "source_predictions")
            ),
            *(f"fastserve.triton.{name}" for name in ("services", "tensor_io")),
            "fastserve.worker.kernels",
            "fastserve.profiler.command",
            "fastserve.simulator.command",
        },
    ),
    "server": rule(
        "server functions tools",
        "transformers tritonclient google",
        modules={"fastserve.export.options", "fastserve.triton.function_io"},
        lazily={f"fastserve.export.{name}" for name in ("command", "exporters", "quiet", "source")},
    ),
    "export": rule(
        "worker text tasks export",
        "numpy torch transformers onnx onnx_ir onnxscript tokenizers safetensors huggingface_hub gguf accelerate peft rich",
        modules={
            "fastserve.core.encoding",
            *(f"fastserve.triton.{name}" for name in ("encoder_io", "generation_io", "tensor_io")),
        },
    ),
}
"""By room. "ground" is L0, :data:`GROUND`; everyone may import it, and the standard library."""
GROUND = {
    "fastserve",
    *(f"fastserve.{name}" for name in ("errors", "config", "manifest", "locked_folder", "argument_types", "timestamps")),
}


@dataclasses.dataclass(frozen=True)
class Import:
    target: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    """``path``: a file of the package or of export, which is imported as a part of it."""
    relative = Path("export") / path.relative_to(EXPORT) if path.is_relative_to(EXPORT) else path.relative_to(PACKAGE)
    return ".".join(part for part in ("fastserve", *relative.with_suffix("").parts) if part != "__init__")


def sources() -> dict[str, Path]:
    files = [path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(PACKAGE / "export")]
    return {module_name(path): path for path in (*files, *EXPORT.rglob("*.py"))}


MODULES = sources()


def imports(module: str, tree: ast.AST, *, lazy: bool = False) -> Iterator[Import]:
    """Every import below ``tree``, and every string that is the name of one of our modules (an import by name)."""
    for node in ast.iter_child_nodes(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, line, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*parent, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield Import(whole if whole in MODULES else source, line, lazy)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"fastserve(\.\w+)+", node.value):
            yield Import(node.value, line, True)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or only_for_types(node)
        yield from imports(module, node, lazy=lazy or inside)


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_of(module: str) -> str | None:
    """None: a module that belongs to no room."""
    if module in GROUND:
        return "ground"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RULES else None


def violations(module: str, source: str) -> list[str]:
    """Every import of ``module`` that its room may not have, in words."""
    room = room_of(module)
    if room is None:
        return [f"{module} belongs to no room; give it a rule"]
    found = [item for item in imports(module, ast.parse(source)) if not allowed(module, RULES[room], item)]
    return [f"{module}:{item.line} imports {item.target}{' lazily' if item.lazy else ''}" for item in found]


def allowed(module: str, own: Rule, item: Import) -> bool:
    top = item.target.split(".")[0]
    if top == "fastserve":
        lazily = item.lazy and item.target in own.lazily
        return room_of(item.target) in own.rooms or item.target in own.modules or lazily
    if top == TRITON_MODULE and module not in TRITON_EDGE:
        return False
    return top in own.packages or (top in sys.stdlib_module_names and top not in own.forbidden)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_lies_below_it(module):
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_the_walk_sees_the_whole_package():
    assert {room_of(module) for module in MODULES} == set(RULES)
    assert set(MODULES) >= TRITON_EDGE
    assert set(MODULES) >= GROUND
    assert len(MODULES) > 50


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastserve.errors", "import numpy"),
        ("fastserve.config", "from fastserve.core.policy import POLICIES"),
        ("fastserve.core.plan", "import numpy as np"),
        ("fastserve.core.plan", "import time"),
        ("fastserve.core.plan", "from random import random"),
        ("fastserve.core.plan", "import threading"),
        ("fastserve.core.plan", "def plan():\n    from time import monotonic"),
        ("fastserve.core.plan", "from fastserve.worker import batch"),
        ("fastserve.core.policy.fcfs", "from ...engine import engine"),
        ("fastserve.worker.batch", "from fastserve.engine.engine import Engine"),
        ("fastserve.worker.batch", "import torch"),
        ("fastserve.worker.batch", "import fastserve.export.graph"),
        ("fastserve.text.templates", "from fastserve.core.request import Request"),
        ("fastserve.text.templates", "import transformers"),
        ("fastserve.tasks.text_generation", "import onnxruntime"),
        ("fastserve.tasks.text_generation", "from fastserve.worker.sampler import Sampler"),
        ("fastserve.engine.engine", "from fastserve.triton.protocol import Answer"),
        ("fastserve.engine.engine", "if TYPE_CHECKING:\n    import onnx"),
        ("fastserve.triton.protocol", "import triton_python_backend_utils as pb_utils"),
        ("fastserve.triton.generation_io", "def f():\n    import triton_python_backend_utils"),
        ("fastserve.triton.backend", "from fastserve.tools import cli"),
        ("fastserve.triton.backend", "import fastserve.export.command"),
        ("fastserve.tools.cli", "from fastserve.export.command import run"),
        ("fastserve.tools.cli", "from fastserve.core.request import Request"),
        ("fastserve.tools.cli", "def f():\n    import fastserve.engine.engine"),
        ("fastserve.tools.cli", "importlib.import_module('fastserve.engine.engine')"),
        ("fastserve.tools.cli", "def f():\n    from fastserve.worker import batch"),
        ("fastserve.tools.cli", "import onnxruntime"),
        ("fastserve.export.graph", "from fastserve.triton import responder"),
        ("fastserve.export.graph", "from fastserve.tools import cli"),
        ("fastserve.export.graph", "import tritonclient"),
        ("fastserve.surprise", "import os"),
        ("fastserve.surprise.room", ""),
    ],
)
def test_the_checker_sees_a_violation(module, source):
    (found,) = violations(module, source)
    assert found.startswith(module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastserve.core.planner", "import heapq\nfrom fastserve.core import sequence\nfrom fastserve.errors import QueueFull"),
        ("fastserve.triton.metrics", "import triton_python_backend_utils as pb_utils"),
        ("fastserve.tools.cli", "import fastserve\nTABLE = {'export': 'fastserve.export.command'}"),
        ("fastserve.tools.doctor", "def f():\n    from fastserve.worker import kernels"),
        ("fastserve.export.config_pbtxt", "from fastserve.triton.generation_io import TensorIO\nimport torch.nn.functional"),
        ("fastserve.core.plan", '"""Prose about fastserve.engine.engine is no import."""'),
        ("fastserve.core.policy.fcfs", "from . import protocol\nfrom ..sequence import Sequence"),
    ],
)
def test_the_checker_allows_what_the_design_allows(module, source):
    assert violations(module, source) == []
