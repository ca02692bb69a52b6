"""What an export is asked for and what it gives back. Stdlib only, so that ``--help`` is instant."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fastserve.config import ENCODER_TASKS, GENERATION_TASK
from fastserve.errors import InvalidRequest
from fastserve.manifest import CPU, CUDA, LAYOUTS, ModelManifest

TASKS = (GENERATION_TASK, *ENCODER_TASKS)
FP32, INT8, INT4, FP16 = "fp32", "int8", "int4", "fp16"
DTYPES = (FP32, INT8, INT4, FP16)
DEVICES = tuple(LAYOUTS)
POOLINGS = ("mean", "cls")
AGGREGATION_STRATEGIES = ("none", "simple", "first", "average", "max")
MAX_PERPLEXITY_RISE: Mapping[str, float] = {INT8: 2.0, INT4: 5.0}
"""Percent, where nothing else is asked for, of each dtype that rounds weights."""
SHORTEST_MAX_LENGTH = 8
"""Tokens: room for a pair of texts and the special tokens around them."""

CLASSIFYING_TASKS = (
    "text-classification",
    "token-classification",
    "relation-extraction",
    "reranking",
    "zero-shot-classification",
)
"""Their outputs have a column for each label."""

_TASKS_WITH = {
    "max_model_len": (GENERATION_TASK,),
    "adapter": (GENERATION_TASK,),
    "keep_fp32": (GENERATION_TASK,),
    "max_perplexity_rise": (GENERATION_TASK,),
    "quality_text": (GENERATION_TASK,),
    "max_length": ENCODER_TASKS,
    "stride": ENCODER_TASKS,
    "pooling": ("feature-extraction",),
    "aggregation_strategy": ("token-classification",),
    "markers": ("relation-extraction",),
    "labels": CLASSIFYING_TASKS,
}
"""Option -> the tasks it is for."""

CONFIG_FILE = "config.pbtxt"
"""In a model's folder: what Triton reads, and what a user edits."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MODEL_NAME_ALLOWED = "letters, digits, '_', '-' and '.', not starting with '.', '_' or '-'"


class Stage(enum.Enum):
    """The stages of an export in their order; ``value`` is what a person reads. Only language models in int8 or int4 are weighed;
    only encoders are measured, and only where there is no config.pbtxt yet."""

    LOAD = "load the source model"
    TRACE = "trace the packed graph"
    CONVERT = "convert to ONNX"
    WEIGH = "weigh what rounding costs each product"
    WRITE = "write graphs and weights"
    PROVE = "prove against the source"
    MEASURE = "measure how many tokens to run at once"


Progress = Callable[[Stage], None]
"""Called once at the start of each stage, in order."""


def no_progress(stage: Stage) -> None:
    """A :data:`Progress` that shows nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExportOptions:
    """Where and how to export. Raises :class:`InvalidRequest` naming the field.

    ``output``: the model repository. ``name``: folder in it, None: taken from the source. ``version``: version folder;
    an existing one is only replaced with ``force``. A config.pbtxt that is already there is the user's and stays.

    Of text generation: ``max_model_len``, longest prompt and answer in tokens, None: as long as the model computes every context
    alike; ``adapter``, a folder with a PEFT adapter that is merged into the weights; ``device``, what the graph is for: a GPU
    ("cuda") takes ``dtype`` "fp16", a CPU does not. ``dtype`` "int4" is of language models only. Of int8 and int4 also
    ``max_perplexity_rise`` in percent (None: see :data:`MAX_PERPLEXITY_RISE`): so many products get more bits, up to fp32, that
    no more is to be expected; ``keep_fp32``, parts of the names of modules whose products are fp32 in any case; ``quality_text``,
    a file on which the loss is measured, None: a text of ours.

    Of encoders, None meaning "as the source says": ``max_length`` and ``stride`` in tokens, ``pooling`` of embeddings,
    ``aggregation_strategy`` of token classification, ``markers`` of relation extraction: the tokens before and after the head,
    before and after the tail. ``labels``: of an ONNX graph that is imported, a file with the names of its labels.
    """

    output: Path
    task: str = "text-generation"
    name: str | None = None
    dtype: str = FP32
    version: int = 1
    force: bool = False
    max_model_len: int | None = None
    adapter: Path | None = None
    device: str = CPU
    keep_fp32: tuple[str, ...] | None = None
    max_perplexity_rise: float | None = None
    quality_text: Path | None = None
    max_length: int | None = None
    stride: int | None = None
    pooling: str | None = None
    aggregation_strategy: str | None = None
    markers: tuple[str, ...] | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InvalidRequest("task", self.task, " or ".join(TASKS))
        if self.dtype not in DTYPES:
            raise InvalidRequest("dtype", self.dtype, " or ".join(DTYPES))
        if self.device not in DEVICES:
            raise InvalidRequest("device", self.device, " or ".join(DEVICES))
        if self.device != CPU and self.task != GENERATION_TASK:
            raise InvalidRequest("device", self.device, f"{CPU} for {self.task}")
        if (self.dtype == FP16) != (self.device == CUDA):
            raise InvalidRequest("dtype", self.dtype, f"{FP16} for device {CUDA}, and only for it")
        if self.dtype == INT4 and self.task != GENERATION_TASK:
            raise InvalidRequest("dtype", self.dtype, f"only for {GENERATION_TASK}, not for {self.task}")
        if self.version < 1:
            raise InvalidRequest("version", self.version, "a whole number, at least 1")
        if self.name is not None and not MODEL_NAME.fullmatch(self.name):
            raise InvalidRequest("name", self.name, MODEL_NAME_ALLOWED)
        self._check_settings_of_tasks()

    def _check_settings_of_tasks(self) -> None:
        for field, tasks in _TASKS_WITH.items():
            if getattr(self, field) is not None and self.task not in tasks:
                raise InvalidRequest(field, getattr(self, field), f"only for {', '.join(tasks)}, not for {self.task}")
        for field in ("keep_fp32", "max_perplexity_rise", "quality_text"):
            if getattr(self, field) is not None and self.dtype not in MAX_PERPLEXITY_RISE:
                allowed = f"only with dtype {' or '.join(MAX_PERPLEXITY_RISE)}, not with {self.dtype}"
                raise InvalidRequest(field, getattr(self, field), allowed)
        if not _is_percentage(self.max_perplexity_rise):
            raise InvalidRequest("max_perplexity_rise", self.max_perplexity_rise, "percent, more than 0 and at most 100")
        if not _is_number(self.max_model_len, 2):
            raise InvalidRequest("max_model_len", self.max_model_len, "a whole number of tokens, at least 2")
        if not _is_number(self.max_length, SHORTEST_MAX_LENGTH):
            raise InvalidRequest("max_length", self.max_length, f"a whole number of tokens, at least {SHORTEST_MAX_LENGTH}")
        if not _is_number(self.stride, 0):
            raise InvalidRequest("stride", self.stride, "a whole number of tokens, at least 0")
        if self.pooling not in (None, *POOLINGS):
            raise InvalidRequest("pooling", self.pooling, " or ".join(POOLINGS))
        if self.aggregation_strategy not in (None, *AGGREGATION_STRATEGIES):
            raise InvalidRequest("aggregation_strategy", self.aggregation_strategy, " or ".join(AGGREGATION_STRATEGIES))
        if self.markers is not None and not _are_markers(self.markers):
            raise InvalidRequest("markers", self.markers, "four different tokens: before and after the head, and the tail")


def _is_number(value: object, least: int) -> bool:
    """Whether ``value`` is left out, or a whole number of at least ``least``. Not only the command line makes options."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)


def _is_percentage(value: object) -> bool:
    """Whether ``value`` is left out, or in (0, 100]."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 100)


def _are_markers(value: object) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(token, str) and token for token in value):
        return False
    return len(value) == len(set(value)) == 4


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
