"""What an export is asked for and what it gives back. Stdlib only, so that ``--help`` is instant."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable
from pathlib import Path

from fastserve.errors import InvalidRequest
from fastserve.manifest import ModelManifest

TASKS = ("text-generation",)
DTYPES = ("fp32",)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Stage(enum.Enum):
    """The stages of an export in their order; ``value`` is what a person reads."""

    LOAD = "load the source model"
    TRACE = "trace the packed graph"
    CONVERT = "convert to ONNX"
    WRITE = "write graphs and weights"
    PROVE = "prove against the source"


Progress = Callable[[Stage], None]
"""Called once at the start of each stage, in order."""


def no_progress(stage: Stage) -> None:
    """A :data:`Progress` that shows nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExportOptions:
    """Where and how to export. Raises :class:`InvalidRequest` naming the field.

    ``output``: the model repository. ``name``: folder in it, None: taken from the source. ``version``: version folder;
    an existing one is only replaced with ``force``. A config.pbtxt that is already there is the user's and stays.
    """

    output: Path
    task: str = "text-generation"
    name: str | None = None
    dtype: str = "fp32"
    version: int = 1
    force: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InvalidRequest("task", self.task, " or ".join(TASKS))
        if self.dtype not in DTYPES:
            raise InvalidRequest("dtype", self.dtype, " or ".join(DTYPES))
        if self.version < 1:
            raise InvalidRequest("version", self.version, "a whole number, at least 1")
        if self.name is not None and not _MODEL_NAME.fullmatch(self.name):
            raise InvalidRequest("name", self.name, "letters, digits, '_', '-' and '.', not starting with '.', '_' or '-'")


@dataclasses.dataclass(frozen=True, slots=True)
class ExportResult:
    """A finished export. ``directory``: the version folder. ``seconds``: wall time of each stage, by :class:`Stage` name.
    ``notes``: what the source says and the export does not do, one sentence each."""

    directory: Path
    manifest: ModelManifest
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def model_directory(self) -> Path:
        return self.directory.parent


def model_name_from(label: str) -> str:
    """A folder name Triton accepts, from a source's label such as ``org/My Model``."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "_", label.rsplit("/", 1)[-1]).lstrip("_.-")
    return cleaned or "model"
